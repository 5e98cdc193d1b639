"""Parallel paths: the same layers, run on m tensors with m sets of stacked parameters."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from multipath_jax.layers.activity import ActivePaths, only

Execution = Literal["unrolled", "grouped"]


def stack_paths(
    layer: nn.Module, xs: Sequence[Array] | Float[Array, "..."] | ActivePaths
) -> Float[Array, "m b *rest"]:
    """Stacks m parallel tensors ``[b ... c]`` along a leading axis; a stacked array passes.

    Raises:
      ValueError: there is none, or their shapes differ or lack a batch axis, or they come from a
        discrete router; names ``layer``.
    """
    if isinstance(xs, ActivePaths):
        raise ValueError(
            f"{describe(layer)}: its inputs come from a discrete router, and it has no notion of "
            "inactive ones; use CrossConnect, or leave k out before it"
        )
    shapes = [x.shape for x in xs]
    if not shapes or len(set(shapes)) > 1 or len(shapes[0]) < 2:
        raise ValueError(
            f"{describe(layer)}: needs one or more parallel tensors of one shape [b ... c], "
            f"got {shapes}"
        )
    return jnp.stack(xs) if isinstance(xs, Sequence) else xs


def describe(layer: nn.Module) -> str:
    """The layer's class and its place in the network, for messages."""
    return f"{type(layer).__name__} {'/'.join(layer.path) or '(top)'}"


def check_sizes(
    layer: nn.Module, shape: Sequence[Any], sizes: Mapping[str, int], count: int = 1
) -> None:
    """Raises ValueError for sizes below one and for tensors ``[b ... c]`` without numbers.

    Args:
      layer: is named.
      shape: of each of its inputs; the batch, its first axis, may be empty, or a symbol while a
        network is exported for any size.
      sizes: attributes of the layer, by name.
      count: of its inputs.
    """
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(
                f"{describe(layer)}: needs {name} >= 1, got {size} for {count} tensors of shape "
                f"{shape}"
            )
    if 0 in shape[1:]:
        raise ValueError(
            f"{describe(layer)}: needs tensors [b ... c] with channels and pixels, got {shape}"
        )


class Parallel(nn.Module):
    """Runs ``module`` on m parallel tensors, each with its own parameters.

    All variables of ``module`` get a leading axis m: one array for all paths. ``execution`` says
    how the paths run, and changes neither the variables nor the result: ``"unrolled"``, one after
    another, or ``"grouped"``, together under ``vmap``, which turns m convolutions into one grouped
    convolution. The gradient of the latter is many times slower on a CPU.

    Attributes:
      module: any Flax module that takes one tensor; keyword arguments of the call are handed on.
      execution: ``"unrolled"`` or ``"grouped"``.
    """

    module: nn.Module
    execution: str = "unrolled"

    def setup(self):
        nn.share_scope(self, self.module)  # the variables lie as if the wrapper were not there

    def __call__(
        self, xs: Sequence[Array] | Float[Array, "m b *rest"] | ActivePaths, **kwargs
    ) -> Array | ActivePaths:
        """``m`` tensors ``[b ...]``, stacked or as a sequence -> ``[m b ...]``.

        Of `ActivePaths`, every path's outputs for the images for which it is active.

        Raises:
          ValueError: the tensors differ in shape, or ``execution`` is unknown.
        """
        if isinstance(xs, ActivePaths):
            ys = self._run(xs.tensors, xs.active, kwargs)
            shown = jnp.expand_dims(xs.active, range(2, ys.ndim))
            return ActivePaths(jnp.where(shown, ys, 0), xs.active)
        return self._run(stack_paths(self, xs), None, kwargs)

    def _run(self, xs, active, kwargs) -> Array:
        lift = {"variable_axes": {True: 0}, "split_rngs": {True: True}}
        if self.execution not in ("unrolled", "grouped"):
            raise ValueError(
                f"{describe(self)}: execution is 'unrolled' or 'grouped', not {self.execution!r}"
            )
        # A scan over one path is compiled as a loop, in which XLA's CPU backend has no fast
        # gradient of a convolution (it prepares the entry computation's only): vmap serves it.
        # Flax draws other numbers under vmap than under scan: parameters always come from scan.
        grouped = self.execution == "grouped" or len(xs) == 1

        def run(module, given):
            x, active = given
            with only(active):
                return module(x, **kwargs)

        if grouped and not self.is_initializing():
            return nn.vmap(run, **lift)(self.module, (xs, active))
        scan = nn.scan(lambda module, _, x: (None, run(module, x)), unroll=len(xs), **lift)
        return scan(self.module, None, (xs, active))[1]
