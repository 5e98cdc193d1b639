"""Inference with discrete routing that computes every path only for its active images.

    network = Gathered(model, variables)
    logits = network(images)  # equal to model.apply(variables, images, train=False), up to rounding

Shapes in a compiled program are static, but the number of images of a path depends on the choices
of the router. So the network is split at the routers. After each router, the choices are copied to
the host, the images of every path are gathered into a batch, and the batch is padded to the next
of a few sizes (`capacity`). Programs are compiled at their first use and shared by all paths
between two routers. No image is dropped, and paths without images are not computed.

The outputs of the paths are stored in one array, path after path, with one row for every active
image of a path; the next router reads the rows that it needs.
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
    """The batch size for a number of images, at most a quarter larger.

    Args:
      images: number of images.

    Returns:
      The smallest size of 1, 2, ..., 8, 10, 12, 14, 16, 20, ... (4, 5, 6, 7 times powers of 2) that
      is not below ``images``.
    """
    scale = 1
    while images > 8 * scale:
        scale *= 2
    return -(-images // scale) * scale


@dataclasses.dataclass
class Work:
    """The work of a call of `Gathered`.

    Attributes:
      multiply_adds: multiply-adds of its programs, including padding, counted as in
        `complexity.complexity`.
      flops: XLA's count of FLOPs in the compiled programs; None if not available.
      loads: number of images of every path behind each router.
    """

    multiply_adds: int = 0
    flops: float | None = 0.0
    loads: list[list[int]] = dataclasses.field(default_factory=list)


class _Depth(NamedTuple):
    """A router, the layers of the paths behind it, and the next router, if any.

    Attributes:
      router: the router.
      layers: the layers behind it.
      following: the next router; None behind the last one.
      chosen: the largest number of outputs that an input chooses.
    """

    router: CrossConnect
    layers: tuple[nn.Module, ...]
    following: CrossConnect | None
    chosen: int


class _Rows(NamedTuple):
    """The outputs of the paths between two routers.

    Attributes:
      values: the outputs, ``[rows ...]``; the rows after the first ``len(images)`` are unused.
      relevance: the scores of the next router, ``[rows n]``.
      images: the index of the image of each used row.
    """

    values: Array
    relevance: Array
    images: Int[np.ndarray, " filled"]


class Gathered:
    """Inference of a network of cross-connections, on one device, without inactive paths.

    Attributes:
      work: the work of the last call.
    """

    def __init__(self, model: nn.Module, variables: PyTree):
        """Prepares the variables of every path; nothing is compiled yet.

        Args:
          model: the network, a `MultiPath`.
          variables: its variables.

        Raises:
          UserError: the network is not a `MultiPath`, or has routers other than `CrossConnect`, or
            none.
        """
        if not isinstance(model, MultiPath):
            raise UserError(
                f"Gathered: supports only networks that are a MultiPath, not {type(model).__name__}"
            )
        routers = [at for at, layer in enumerate(model.layers) if isinstance(layer, Router)]
        if not routers or not all(isinstance(model.layers[at], CrossConnect) for at in routers):
            raise UserError("Gathered: supports only networks whose routers are all CrossConnect")
        self._model, self._variables = model, variables
        self._before = model.layers[: routers[0]]
        self._depths = tuple(
            _Depth(
                model.layers[at],
                tuple(model.layers[at + 1 : end]),
                None if end is None else model.layers[end],
                self._chosen(model.layers[at]),
            )
            for at, end in zip(routers, (*routers[1:], None), strict=True)
        )
        self._paths = [self._of_paths(depth) for depth in self._depths]
        self._programs: dict[Any, tuple[Callable[..., Any], int, float | None]] = {}
        self.work = Work()

    def __call__(
        self, images: Float[Array, "b h w c"] | Float[np.ndarray, "b h w c"]
    ) -> Float[Array, "b classes"]:
        """Computes the logits, ``[b h w c] -> [b classes]``.

        Args:
          images: any number of images, preprocessed, ``[b h w c]``.

        Returns:
          The logits.
        """
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

    def _chosen(self, router: CrossConnect) -> int:
        """The largest number of outputs that an input chooses: n if the router is soft."""
        soft = self._state(router)[COLLECTION].get("soft", not router.is_discrete)
        return router.num_outputs if soft else router.k

    def _of_paths(self, depth: _Depth) -> list[tuple[PyTree, PyTree]]:
        """For each path, the variables of its layers, and of its gate in the next router."""
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
        """Computes one router and the paths behind it."""
        depth = self._depths[at]
        choose, state = partial(_choose, depth.router), self._state(depth.router)
        gates, chosen = jax.device_get(self._call(("choose", at), choose, state, rows[1]))
        filled = len(rows.images)
        parts = [_gathered(rows.images, gates[:filled, j], chosen[:filled, j]) for j in
                 range(depth.router.num_outputs)]  # fmt: skip
        self.work.loads.append([len(part.images) for part in parts])
        # Rows for all images of all paths that can be active, and for the padding of the last one.
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

    def _state(self, router: CrossConnect) -> PyTree:
        state = self._variables.get(COLLECTION, {}).get(router.name, {})
        return {COLLECTION: state.get("chooser", {})}

    def _call(self, name: tuple, function: Callable[..., Any], *arguments: Any) -> Any:
        """Runs a program, compiled at the first call for these shapes, and adds up its work."""
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
        """The layers before the first router, and its scores."""
        x = images
        for layer in self._before:
            own = {key: tree[layer.name] for key, tree in variables.items() if layer.name in tree}
            x = layer.clone(name=None).apply(own, x, train=False)
        gates = routing.GateParams(**variables["params"][self._depths[0].router.name]["gate"])
        return x, _relevance(x, routing.GateParams(*(leaf[0] for leaf in gates)))


def _most_active(depths: Sequence[_Depth]) -> int:
    """The largest number of paths that can be active for an image behind these routers."""
    active = 1
    for depth in depths:
        active = min(depth.router.num_outputs, active * depth.chosen)
    return active


class _Part(NamedTuple):
    """The inputs of one path, padded to a `capacity`.

    Attributes:
      images: indices of its active images, in order.
      rows: rows of the inputs of every image; r is the largest number of inputs.
      weights: the gates of these inputs; zero in the padding.
    """

    images: Int[np.ndarray, " load"]
    rows: Int[np.ndarray, "capacity r"]
    weights: Float[np.ndarray, "capacity r"]


def _gathered(
    images: Int[np.ndarray, " filled"],
    gates: Float[np.ndarray, " filled"],
    chosen: Bool[np.ndarray, " filled"],
) -> _Part:
    """The rows that chose one output, grouped by image."""
    rows = np.flatnonzero(chosen)
    rows = rows[np.argsort(images[rows], kind="stable")]
    own, first, counts = np.unique(images[rows], return_index=True, return_counts=True)
    size = capacity(len(own)), max(counts, default=0)
    place = np.repeat(np.arange(len(own)), counts), np.arange(len(rows)) - np.repeat(first, counts)
    from_rows, weights = np.zeros(size, np.int32), np.zeros(size, gates.dtype)
    from_rows[place], weights[place] = rows, gates[rows]
    return _Part(own, from_rows, weights)


def _padded_images(rows: _Rows) -> Int[np.ndarray, " rows"]:
    """The index of the image of every row; out of bounds for unused rows."""
    filled = np.full(len(rows.values), np.iinfo(np.int32).max, np.int32)
    filled[: len(rows.images)] = rows.images
    return filled


def _choose(router: CrossConnect, state: PyTree, relevance: Array) -> tuple[Array, Array]:
    """The gates of every row, and whether it chose an output, both ``[rows n]``."""
    active = jnp.ones((1, len(relevance)), bool)
    if router.is_discrete:
        chooser = Chooser(router.k, router.choice)
        gates, chosen = chooser.apply(state, relevance[None], active, False)
        return gates[0], chosen[0]
    return jax.nn.softmax(relevance), jnp.ones(relevance.shape, bool)


def _path(depth, size, own, values, rows, weights, start, out) -> tuple[Array, Array]:
    """Computes a path: Eq. 5 for its inputs, then its layers; writes to ``out`` from ``start``."""
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
    """D5: the mean over the active paths, from rows."""
    values = values.astype(routing.gate_dtype(values))
    total = jnp.zeros((batch, *values.shape[1:]), values.dtype).at[images].add(values, mode="drop")
    ones = jnp.ones((len(values), *[1] * (values.ndim - 1)), values.dtype)
    count = jnp.zeros((batch, *ones.shape[1:]), values.dtype).at[images].add(ones, mode="drop")
    return total / count
