"""A trained network watched at its routers: what Section 7 looks at, as NumPy arrays."""

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Bool, Float, PyTree, UInt8
from tqdm import tqdm

BATCH_SIZE = 250
RECORDS = ("gates", "relevance", "input_strength", "output_strength")


@runtime_checkable
class Trained(Protocol):
    """A trained network and how it takes its images; a `multipath_jax.runs.LoadedRun` is one.

    Attributes:
      model: any Flax module that gives logits when called with ``(images, train=False)``.
      variables: its parameters and statistics.
    """

    model: nn.Module
    variables: PyTree

    def prepare(self, images: UInt8[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Images as they are stored -> the network's input, the same straight line everywhere."""


@dataclasses.dataclass(frozen=True)
class RouterRecord:
    """What one router did with b images: m tensors came in, n went out.

    Attributes:
      name: the router's, with those of the modules that it is in.
      gates: Eq. 3.
      relevance: Eq. 2, the scores before the softmax.
      input_strength, output_strength: the mean activation of every tensor (Section 7.1).
      chosen: of a discrete router, which outputs every active input chose; of a soft one, None.
    """

    name: str
    gates: Float[np.ndarray, "m b n"]
    relevance: Float[np.ndarray, "m b n"]
    input_strength: Float[np.ndarray, "m b"]
    output_strength: Float[np.ndarray, "n b"]
    chosen: Bool[np.ndarray, "m b n"] | None = None

    @property
    def vectors(self) -> Float[np.ndarray, "b mn"]:
        """All gates of an image in a row: g_11, ..., g_1n, g_21, ..."""
        return np.moveaxis(self.gates, 1, 0).reshape(self.gates.shape[1], -1)


@dataclasses.dataclass(frozen=True)
class Observation:
    """What a network did with b images.

    Attributes:
      routers: in the order in which an image meets them; router l of the paper is the l-th.
      logits: the network's output.
    """

    routers: tuple[RouterRecord, ...]
    logits: Float[np.ndarray, "b classes"]

    @property
    def probabilities(self) -> Float[np.ndarray, "b classes"]:
        """The softmax of the logits."""
        return np.asarray(jax.nn.softmax(self.logits))


@dataclasses.dataclass(frozen=True)
class Outline:
    """A network from left to right.

    Attributes:
      routers: the names of its R routers, in the order in which an image meets them.
      gates: the numbers m of inputs and n of outputs of each.
      stacks: names of the ordinary layers before the first router, after it, ..., after the last:
        R + 1 tuples. Routers that lie within one top-level module have none between them.
      calls: the paths of all its modules, in the order of their first calls.
      discrete: whether a router chooses among its outputs.
    """

    routers: tuple[str, ...]
    gates: tuple[tuple[int, int], ...]
    stacks: tuple[tuple[str, ...], ...]
    calls: tuple[tuple[str, ...], ...]
    discrete: bool = False


def outline(trained: Trained, image_shape: tuple[int, int, int]) -> Outline:
    """The network's outline, from shapes alone; nothing is computed."""
    found = []  # written while tracing: what comes out of it has its keys sorted

    def run(variables, images):
        _, recorded = trained.model.apply(
            variables, images, train=False, capture_intermediates=True, mutable=["intermediates"]
        )
        found.append(recorded["intermediates"])

    jax.eval_shape(run, trained.variables, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
    (recorded,) = found
    flat = traverse_util.flatten_dict(recorded)
    routers = [path[:-1] for path in flat if path[-1] == "gates"]
    stacks = [[]]
    for name in recorded:
        inside = sum(router[0] == name for router in routers)
        stacks += [[] for _ in range(inside)]
        if not inside and name != "__call__":
            stacks[-1].append(name)
    return Outline(
        routers=tuple(map("/".join, routers)),
        gates=tuple(flat[*router, "gates"][0].shape[::2] for router in routers),
        stacks=tuple(map(tuple, stacks)),
        calls=tuple(path[:-1] for path in flat if path[-1] == "__call__"),
        discrete=any(path[-1] == "chosen" for path in flat),
    )


def observe(
    trained: Trained, images: UInt8[np.ndarray, "b h w c"], batch_size: int = BATCH_SIZE
) -> Observation:
    """Runs the network over the images, a batch at a time, and keeps what the routers record."""
    names = outline(trained, images.shape[1:]).routers
    kept = (*RECORDS, "chosen")  # the last of discrete routers alone

    @jax.jit
    def watch(variables, images):
        x = trained.prepare(images)
        logits, recorded = trained.model.apply(variables, x, train=False, mutable=["intermediates"])
        flat = traverse_util.flatten_dict(recorded.get("intermediates", {}))
        records = [{key: flat.get((*name.split("/"), key), (None,))[0] for key in kept}
                   for name in names]  # fmt: skip
        return logits, records

    parts = [
        jax.device_get(watch(trained.variables, batch))
        for batch in batches(images, batch_size, "observing")
    ]
    logits, recorded = zip(*parts, strict=True)

    def joined(axis, *found):
        return np.concatenate(found, axis).take(range(len(images)), axis)

    routers = jax.tree.map(partial(joined, 1), *recorded)  # [m b n], [m b], [n b]
    return Observation(
        tuple(RouterRecord(name, **found) for name, found in zip(names, routers, strict=True)),
        joined(0, *logits),
    )


def batches(arrays: PyTree, batch_size: int, doing: str) -> Iterator[PyTree]:
    """Batches of arrays ``[b ...]``, all of one size, and a bar that shows the progress.

    The last is filled up with zeros, so that what runs over them is compiled once.
    """
    count = len(jax.tree.leaves(arrays)[0])
    size = min(batch_size, count)

    def cut(array, start):
        part = array[start : start + size]
        return np.pad(part, [(0, size - len(part))] + [(0, 0)] * (part.ndim - 1))

    for start in tqdm(range(0, count, size), doing, unit="batch", leave=False, disable=None):
        yield jax.tree.map(lambda array, start=start: cut(array, start), arrays)
