"""The gates and activation strengths of a trained network (Section 7), as NumPy arrays."""

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Bool, Float, Num, PyTree
from tqdm import tqdm

from multipath_jax.errors import UserError

BATCH_SIZE = 250
RECORDS = ("gates", "relevance", "input_strength", "output_strength")


@runtime_checkable
class Trained(Protocol):
    """A trained network with its preprocessing, such as a `multipath_jax.runs.LoadedRun`.

    Attributes:
      model: any Flax module that returns logits when called with ``(images, train=False)``.
      variables: its parameters and other collections.
    """

    model: nn.Module
    variables: PyTree

    def prepare(self, images: Num[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Converts stored images to the network's input, by the same affine map for all pixels."""


@dataclasses.dataclass(frozen=True)
class RouterRecord:
    """The records of one router with m inputs and n outputs, for b images.

    Attributes:
      name: path of the router in the network, such as ``router_1``.
      gates: the gates, ``[m b n]`` (Eq. 3).
      relevance: the scores before the softmax, ``[m b n]`` (Eq. 2).
      input_strength, output_strength: mean activations of the inputs, ``[m b]``, and outputs,
        ``[n b]`` (Section 7.1).
      chosen: whether each active input chose each output, ``[m b n]``; None if the router is soft.
    """

    name: str
    gates: Float[np.ndarray, "m b n"]
    relevance: Float[np.ndarray, "m b n"]
    input_strength: Float[np.ndarray, "m b"]
    output_strength: Float[np.ndarray, "n b"]
    chosen: Bool[np.ndarray, "m b n"] | None = None

    @property
    def vectors(self) -> Float[np.ndarray, "b mn"]:
        """All gates of each image as one vector: g_11, ..., g_1n, g_21, ..."""
        return np.moveaxis(self.gates, 1, 0).reshape(self.gates.shape[1], -1)


@dataclasses.dataclass(frozen=True)
class Observation:
    """The records of all routers of a network, and its logits, for b images.

    Attributes:
      routers: the records in the order of execution; the l-th is router l of the paper.
      logits: ``[b classes]``.
    """

    routers: tuple[RouterRecord, ...]
    logits: Float[np.ndarray, "b classes"]

    @property
    def probabilities(self) -> Float[np.ndarray, "b classes"]:
        """The softmax of the logits."""
        return np.asarray(jax.nn.softmax(self.logits))


@dataclasses.dataclass(frozen=True)
class Outline:
    """The order of the routers and layers of a network.

    Attributes:
      routers: names of its R routers, in the order of execution.
      gates: numbers of inputs m and outputs n of each router.
      stacks: R + 1 tuples with the names of the other layers before the first router, between
        routers, and after the last. Between routers in one top-level module there are none.
      calls: paths of all modules, in the order of their first calls.
      discrete: whether the network has discrete routers.
    """

    routers: tuple[str, ...]
    gates: tuple[tuple[int, int], ...]
    stacks: tuple[tuple[str, ...], ...]
    calls: tuple[tuple[str, ...], ...]
    discrete: bool = False


def outline(trained: Trained, image_shape: tuple[int, int, int]) -> Outline:
    """Computes the outline of a network by tracing it; nothing is executed.

    Args:
      trained: the network.
      image_shape: height, width and channels.

    Raises:
      UserError: a router is inside of `layers.Parallel` or `nn.scan`.
    """
    found = []  # appended to while tracing: the returned tree has its keys sorted

    def run(variables, images):
        _, recorded = trained.model.apply(
            variables, images, train=False, capture_intermediates=True, mutable=["intermediates"]
        )
        found.append(recorded["intermediates"])

    jax.eval_shape(run, trained.variables, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
    (recorded,) = found
    flat = traverse_util.flatten_dict(recorded)
    routers = [path[:-1] for path in flat if path[-1] == "gates"]
    for router in routers:
        if len(flat[*router, "gates"][0].shape) > 3:
            raise UserError(
                f"the router {'/'.join(router)} is inside of layers.Parallel or nn.scan, and its "
                "gates cannot be observed; call it outside of them"
            )
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
    trained: Trained, images: Num[np.ndarray, "b h w c"], batch_size: int = BATCH_SIZE
) -> Observation:
    """Runs a network on images and collects the records of its routers.

    Args:
      trained: the network.
      images: images as `prepare` takes them, ``[b h w c]``.
      batch_size: number of images per batch.

    Returns:
      The records and the logits of all images.

    Raises:
      UserError: as `outline`.
    """
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
    """Yields batches of one size from arrays ``[b ...]``, and shows a progress bar.

    The last batch is padded with zeros, so that functions of a batch are compiled once.

    Args:
      arrays: a tree of arrays with the same leading axis.
      batch_size: number of examples per batch.
      doing: label of the progress bar.
    """
    count = len(jax.tree.leaves(arrays)[0])
    size = min(batch_size, count)

    def cut(array, start):
        part = array[start : start + size]
        return np.pad(part, [(0, size - len(part))] + [(0, 0)] * (part.ndim - 1))

    for start in tqdm(range(0, count, size), doing, unit="batch", leave=False, disable=None):
        yield jax.tree.map(lambda array, start=start: cut(array, start), arrays)
