"""Inference that skips: every path runs on the images that are routed to it, and on no others.

    network = Gathered(model, variables)
    logits = network(images)  # those of model.apply(variables, images, train=False)

A compiled program has static shapes, and how many images a path gets is known only once a router
has chosen. So the network is run in pieces. After each router the choices come to the host, which
says which images go where; then every path is run by a program of the smallest of a few sizes that
holds its images. Programs are compiled when they are first needed, one for all paths of a depth.
No image is ever left out, and a path without images is not run.

What paths give lies in one array of rows, path after path, a row for every image that a path was
active for: the next router reads it by row, and nothing is as large as all paths times all images.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from multipath_jax import routing
from multipath_jax.errors import UserError
from multipath_jax.layers import CrossConnect, Router
from multipath_jax.layers.choice import COLLECTION, Chooser
from multipath_jax.models.complexity import multiply_adds
from multipath_jax.models.multipath import MultiPath


def capacity(images: int) -> int:
    """The smallest of 1, 2, ..., 8, 10, 12, 14, 16, 20, ... that is enough: 4, 5, 6, 7 times 2^e.

    At most a quarter more than the images.
    """
    scale = 1
    while images > 8 * scale:
        scale *= 2
    return -(-images // scale) * scale


@dataclasses.dataclass
class Work:
    """What a call of `Gathered` did.

    Attributes:
      multiply_adds: of its programs, the rows that fill them up included, as
        `complexity.complexity` counts them.
      flops: that XLA counts in the compiled programs; None where it does not say.
      loads: after each router, the images of every path.
    """

    multiply_adds: int = 0
    flops: float | None = 0.0
    loads: list[list[int]] = dataclasses.field(default_factory=list)


class _Depth(NamedTuple):
    """A router, the layers of the paths behind it, and the router that follows them, if any."""

    router: CrossConnect
    layers: tuple[nn.Module, ...]
    following: CrossConnect | None


class _Rows(NamedTuple):
    """What the paths gave.

    Attributes:
      values: ``[rows ...]``, of which the first are filled.
      relevance: of the next router for each, ``[rows n]``.
      images: which image each filled row is of.
    """

    values: Array
    relevance: Array
    images: Int[np.ndarray, " filled"]


class Gathered:
    """A network of cross-connections, run on one device without what its images skip.

    Attributes:
      work: what the last call did.
    """

    def __init__(self, model: MultiPath, variables: PyTree):
        """Nothing is compiled yet.

        Raises:
          UserError: the network has other routers than `CrossConnect`, or none.
        """
        routers = [at for at, layer in enumerate(model.layers) if isinstance(layer, Router)]
        if not routers or not all(isinstance(model.layers[at], CrossConnect) for at in routers):
            raise UserError("Gathered: runs networks whose routers are all cross-connections")
        self._model, self._variables = model, variables
        self._before = model.layers[: routers[0]]
        self._depths = tuple(
            _Depth(
                model.layers[at],
                tuple(model.layers[at + 1 : end]),
                None if end is None else model.layers[end],
            )
            for at, end in zip(routers, (*routers[1:], None), strict=True)
        )
        self._paths = [self._of_paths(depth) for depth in self._depths]
        self._programs: dict[Any, tuple[Callable[..., Any], int, float | None]] = {}
        self.work = Work()

    def __call__(
        self, images: Float[Array, "b h w c"] | Float[np.ndarray, "b h w c"]
    ) -> Float[Array, "b classes"]:
        """The logits of any number of images."""
        images, self.work = jnp.asarray(images), Work()
        if not len(images):
            one = jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype)
            return jnp.zeros(
                (0, *jax.eval_shape(self._model.apply, self._variables, one).shape[1:])
            )
        shared = {name: self._variables[name] for name in self._variables if name != COLLECTION}
        values, relevance = self._call(("enter",), self._enter, shared, images)
        rows = _Rows(values, relevance, np.arange(len(images)))
        for at in range(len(self._depths)):
            rows = self._run(at, rows, len(images))
        mean = partial(_mean, len(images))
        return self._call(("end", len(images)), mean, rows.values, _padded_images(rows))

    def _of_paths(self, depth: _Depth) -> list[tuple[PyTree, PyTree]]:
        """For each path of a depth, its layers' variables and its gate in the next router."""
        names = [layer.name for layer in depth.layers]

        def of_path(j: int, tree: PyTree) -> PyTree:
            return jax.tree.map(lambda leaf: jnp.asarray(leaf[j]), tree)

        stacked = {
            name: {key: tree[name] for key, tree in self._variables.items() if name in tree}
            for name in names
        }
        gates = {} if depth.following is None else self._gates(depth.following)
        count = depth.router.num_outputs
        return [(of_path(j, stacked), of_path(j, gates)) for j in range(count)]

    def _gates(self, router: CrossConnect) -> routing.GateParams:
        return routing.GateParams(**self._variables["params"][router.name]["gate"])

    # --- On the host -----------------------------------------------------------------------------

    def _run(self, at: int, rows: _Rows, batch: int) -> _Rows:
        """From the rows before a router to those that the paths behind it give."""
        depth = self._depths[at]
        gates, chosen = jax.device_get(
            self._call(("choose", at), partial(_choose, depth.router), self._state(at), rows[1])
        )
        filled = len(rows.images)
        parts = [_gathered(rows.images, gates[:filled, j], chosen[:filled, j]) for j in
                 range(depth.router.num_outputs)]  # fmt: skip
        self.work.loads.append([len(part.images) for part in parts])
        # Enough for all that these paths can be given, and for what fills the last of them up.
        most = capacity(batch * _most_active(self._depths[: at + 1]) + batch)
        run, out, start = partial(_path, depth, most), None, 0
        for part, own in zip(parts, self._paths[at], strict=True):
            if len(part.images):
                out = self._call(
                    ("path", at, most), run, own, rows.values, part.rows, part.weights,
                    np.int32(start), out,
                )  # fmt: skip
                start += len(part.images)
        images = np.concatenate([part.images for part in parts])
        return _Rows(*out, images)

    def _state(self, at: int) -> PyTree:
        state = self._variables.get(COLLECTION, {}).get(self._depths[at].router.name, {})
        return {COLLECTION: state.get("chooser", {})}

    def _call(self, name: tuple, function: Callable[..., Any], *arguments: Any) -> Any:
        """Runs a program, which is compiled for shapes that are new, and adds up its work."""
        shapes = tuple((leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(arguments))
        key = (name, shapes)
        if key not in self._programs:
            donated = (5,) if name[0] == "path" else ()
            lowered = jax.jit(function, donate_argnums=donated).lower(*arguments)
            compiled = lowered.compile()
            flops = (compiled.cost_analysis() or {}).get("flops")
            self._programs[key] = compiled, multiply_adds(function, *arguments), flops
        compiled, products, flops = self._programs[key]
        self.work.multiply_adds += products
        known = None not in (self.work.flops, flops)
        self.work.flops = self.work.flops + flops if known else None
        return compiled(*arguments)

    # --- On the device ---------------------------------------------------------------------------

    def _enter(self, variables: PyTree, images: Array) -> tuple[Array, Array]:
        """What comes before the paths, and the relevance of the first router."""
        x = images
        for layer in self._before:
            own = {key: tree[layer.name] for key, tree in variables.items() if layer.name in tree}
            x = layer.clone(name=None).apply(own, x, train=False)
        gates = routing.GateParams(**variables["params"][self._depths[0].router.name]["gate"])
        return x, _relevance(x, routing.GateParams(*(leaf[0] for leaf in gates)))


def _most_active(depths: Sequence[_Depth]) -> int:
    """The paths that can be active for an image behind these routers."""
    active = 1
    for depth in depths:
        n = depth.router.num_outputs
        active = min(n, active * (depth.router.k or n))
    return active


class _Part(NamedTuple):
    """What one path is given, filled up to a capacity.

    Attributes:
      images: that it is active for, in their order.
      rows: of its inputs; r is the most that any of them has.
      weights: their gates; zero for what only fills up.
    """

    images: Int[np.ndarray, " load"]
    rows: Int[np.ndarray, "capacity r"]
    weights: Float[np.ndarray, "capacity r"]


def _gathered(
    images: Int[np.ndarray, " filled"],
    gates: Float[np.ndarray, " filled"],
    chosen: Bool[np.ndarray, " filled"],
) -> _Part:
    """The rows that chose one output, by their images."""
    rows = np.flatnonzero(chosen)
    rows = rows[np.argsort(images[rows], kind="stable")]
    own, first, counts = np.unique(images[rows], return_index=True, return_counts=True)
    size = capacity(len(own)), max(counts, default=0)
    place = np.repeat(np.arange(len(own)), counts), np.arange(len(rows)) - np.repeat(first, counts)
    from_rows, weights = np.zeros(size, np.int32), np.zeros(size, gates.dtype)
    from_rows[place], weights[place] = rows, gates[rows]
    return _Part(own, from_rows, weights)


def _padded_images(rows: _Rows) -> Int[np.ndarray, " rows"]:
    """The image of every row; of those that are not filled, none that there is."""
    filled = np.full(len(rows.values), np.iinfo(np.int32).max, np.int32)
    filled[: len(rows.images)] = rows.images
    return filled


def _choose(router: CrossConnect, state: PyTree, relevance: Array) -> tuple[Array, Array]:
    """The gates of every row, and which outputs it chose, ``[rows n]`` both."""
    active = jnp.ones((1, len(relevance)), bool)
    if router.is_discrete:
        chooser = Chooser(router.k, router.choice)
        gates, chosen = chooser.apply(state, relevance[None], active, False)
        return gates[0], chosen[0]
    return jax.nn.softmax(relevance), jnp.ones(relevance.shape, bool)


def _path(depth, size, own, values, rows, weights, start, out) -> tuple[Array, Array]:
    """One path: mixes its inputs (D3), runs its layers, and writes what they give from a row on."""
    variables, gate = own
    dtype = routing.gate_dtype(values)
    space = tuple(range(1, values.ndim))
    terms = [
        jnp.expand_dims(weights[:, r].astype(dtype), space) * values[rows[:, r]].astype(dtype)
        for r in range(rows.shape[1])
    ]
    x = sum(terms[1:], terms[0]).astype(values.dtype)
    for layer in depth.layers:
        x = layer.clone(name=None).apply(variables[layer.name], x, train=False)
    found = x, _relevance(x, gate) if gate else jnp.zeros((len(x), 0))
    if out is None:
        out = tuple(jnp.zeros((size, *leaf.shape[1:]), leaf.dtype) for leaf in found)
    return tuple(
        jax.lax.dynamic_update_slice_in_dim(whole, leaf, start, axis=0)
        for whole, leaf in zip(out, found, strict=True)
    )


def _relevance(x: Array, gate: routing.GateParams) -> Array:
    return routing.relevance(routing.global_average_pool(x), gate)


def _mean(batch: int, values: Array, images: Array) -> Array:
    """D5, from rows."""
    values = values.astype(routing.gate_dtype(values))
    total = jnp.zeros((batch, *values.shape[1:]), values.dtype).at[images].add(values, mode="drop")
    ones = jnp.ones((len(values), *[1] * (values.ndim - 1)), values.dtype)
    count = jnp.zeros((batch, *ones.shape[1:]), values.dtype).at[images].add(ones, mode="drop")
    return total / count
