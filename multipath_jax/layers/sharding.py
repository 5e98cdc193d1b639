"""Sharding context for layers: paths and batches that are sharded over devices.

Inside `over_devices`, layers run under `jax.shard_map`: with paths sharded over P devices, each
device has ``m / P`` of the network's m paths, and a part of the batch. BatchNorm averages its
statistics over `batch_axis`, a router passes its outputs through `scatter_outputs`, and a network
ends with `mean_over_paths`. Discrete routers use `scatter_any`, `all_axes` and `ratio_over_paths`.
Only these communicate between devices. Outside of the context they work on one device.
"""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int


class _Axes(NamedTuple):
    """The mesh axes over which `jax.shard_map` runs.

    Attributes:
      data: axis over which the batch is sharded.
      path: axis over which the paths are sharded.
      replicated: whether the inputs of the current router are replicated over the path axis.
    """

    data: str | None = None
    path: str | None = None
    replicated: bool = False


_NO_AXES = _Axes()
_AXES = contextvars.ContextVar("axes", default=_NO_AXES)


@contextlib.contextmanager
def over_devices(data: str, path: str | None) -> Iterator[None]:
    """Context in which layers are traced under `jax.shard_map`.

    Args:
      data: mesh axis over which the batch is sharded.
      path: mesh axis over which the paths are sharded; None if they are not.
    """
    token = _AXES.set(_Axes(data, path))
    try:
        yield
    finally:
        _AXES.reset(token)


@contextlib.contextmanager
def replicated_inputs() -> Iterator[None]:
    """Context for the first router, whose inputs are replicated over the path axis."""
    token = _AXES.set(_AXES.get()._replace(replicated=True))
    try:
        yield
    finally:
        _AXES.reset(token)


def batch_axis() -> str | None:
    """The mesh axis over which the batch is sharded, for BatchNorm's statistics; None if not."""
    return _AXES.get().data


def all_axes() -> tuple[str, ...]:
    """The mesh axes over which the inputs of the current router are sharded, for sums over them.

    These are the axes of the batch and of the paths; for the first router, whose inputs are
    replicated over the path axis, only that of the batch.
    """
    axes = _AXES.get()
    path = None if axes.replicated else axes.path
    return tuple(axis for axis in (axes.data, path) if axis is not None)


def scatter_outputs(
    ys: Float[Array, "n b *rest"] | Int[Array, "n b"],
) -> Float[Array, "n2 b *rest"] | Int[Array, "n2 b"]:
    """Sums a router's outputs over devices and keeps those of this device's paths.

    Every device has computed the contribution of its own input paths to all n outputs. They are
    combined by one reduce-scatter (in the backward pass, one all-gather). The first router has
    computed all outputs on every device, which only keeps its own.

    Args:
      ys: the contributions of this device's inputs to all outputs, ``[n b ...]``.

    Returns:
      The outputs of this device's paths, ``[n/P b ...]``; ``ys`` if paths are not sharded.
    """
    axes = _AXES.get()
    if axes.path is None:
        return ys
    if not axes.replicated:
        return lax.psum_scatter(ys, axes.path, scatter_dimension=0, tiled=True)
    own = len(ys) // lax.axis_size(axes.path)
    return lax.dynamic_slice_in_dim(ys, lax.axis_index(axes.path) * own, own)


def scatter_any(active: Bool[Array, "n b"]) -> Bool[Array, "n2 b"]:
    """Whether the outputs of this device's paths are active, by the inputs on any device (D4).

    Args:
      active: whether this device's inputs chose the outputs, ``[n b]``.

    Returns:
      ``[n/P b]``; ``active`` if paths are not sharded.
    """
    if _AXES.get().path is None:
        return active
    return scatter_outputs(active.astype(jnp.int32)) > 0


def mean_over_paths(xs: Float[Array, "m b *rest"]) -> Float[Array, "b *rest"]:
    """The mean over all paths, including those on other devices: ``[m b ...] -> [b ...]``."""
    axes = _AXES.get()
    x = jnp.mean(xs, axis=0)
    return x if axes.path is None or axes.replicated else lax.pmean(x, axes.path)


def ratio_over_paths(total: Float[Array, "b *rest"], count: Float[Array, "b *ones"]) -> Array:
    """``total / count``, each summed over the devices of all paths: ``[b ...] -> [b ...]``."""
    axes = _AXES.get()
    if axes.path is not None:
        total, count = lax.psum((total, count), axes.path)
    return total / count
