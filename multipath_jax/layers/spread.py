"""Paths that lie on several devices: all that layers have to know about it.

Within `over_devices` a layer sees the paths of its own device only, ``m`` of them being ``m / P``
of the network's on P devices, and a part of the batch. BatchNorm takes its statistics over
`batch_axis`; a router hands what it computed to `deliver`, and a network ends with `mean`. These
three are the only places where devices exchange anything. Outside they do nothing.
"""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int


class _Axes(NamedTuple):
    """The mesh axes over which `jax.shard_map` runs, if it does, and what a router is given."""

    data: str | None = None
    path: str | None = None
    shared: bool = False  # whether the router's inputs are the same on all devices of other paths


_NO_AXES = _Axes()
_AXES = contextvars.ContextVar("axes", default=_NO_AXES)


@contextlib.contextmanager
def over_devices(data: str, path: str | None) -> Iterator[None]:
    """Traces layers for a `jax.shard_map` over these two axes of a mesh, or over the first."""
    token = _AXES.set(_Axes(data, path))
    try:
        yield
    finally:
        _AXES.reset(token)


@contextlib.contextmanager
def shared_inputs() -> Iterator[None]:
    """Around the router that opens the paths: every device gives it the same tensors."""
    token = _AXES.set(_AXES.get()._replace(shared=True))
    try:
        yield
    finally:
        _AXES.reset(token)


def batch_axis() -> str | None:
    """The axis over which a batch is spread, for statistics of the whole of it."""
    return _AXES.get().data


def all_axes() -> tuple[str, ...]:
    """The axes over which images or paths are spread, for sums over both.

    The inputs of the router that opens the paths are the same on every device of other paths.
    """
    axes = _AXES.get()
    path = None if axes.shared else axes.path
    return tuple(axis for axis in (axes.data, path) if axis is not None)


def deliver(
    ys: Float[Array, "n b *rest"] | Int[Array, "n b"],
) -> Float[Array, "n2 b *rest"] | Int[Array, "n2 b"]:
    """The outputs of a router that belong to this device's paths, ``[n ...] -> [n/P ...]``.

    What the inputs on every device contribute to all n outputs is summed where the output belongs
    (one reduce-scatter; backward, one all-gather). A router that opens the paths has computed all
    n on every device, and keeps its own.
    """
    axes = _AXES.get()
    if axes.path is None:
        return ys
    if not axes.shared:
        return lax.psum_scatter(ys, axes.path, scatter_dimension=0, tiled=True)
    own = len(ys) // lax.axis_size(axes.path)
    return lax.dynamic_slice_in_dim(ys, lax.axis_index(axes.path) * own, own)


def deliver_any(active: Bool[Array, "n b"]) -> Bool[Array, "n2 b"]:
    """Whether any device's inputs chose the outputs that belong to this device's paths."""
    if _AXES.get().path is None:
        return active
    return deliver(active.astype(jnp.int32)) > 0


def mean(xs: Float[Array, "m b *rest"]) -> Float[Array, "b *rest"]:
    """The mean over all paths, also those on other devices."""
    axes = _AXES.get()
    x = jnp.mean(xs, axis=0)
    return x if axes.path is None or axes.shared else lax.pmean(x, axes.path)


def ratio(total: Float[Array, "b *rest"], count: Float[Array, "b *ones"]) -> Array:
    """Total over count, both over all paths, also those on other devices."""
    axes = _AXES.get()
    if axes.path is not None:
        total, count = lax.psum((total, count), axes.path)
    return total / count
