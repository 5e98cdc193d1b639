"""Parallel paths: one module applied to m tensors with m sets of stacked parameters."""

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
    """Stacks m parallel tensors ``[b ... c]`` along a leading axis.

    Args:
      layer: the layer to name in errors.
      xs: a sequence of m tensors, or an array ``[m b ... c]``, which is returned as it is.

    Returns:
      ``[m b ... c]``.

    Raises:
      ValueError: there are no tensors, their shapes differ, they have no batch axis, or they are
        `ActivePaths`.
    """
    if isinstance(xs, ActivePaths):
        raise ValueError(
            f"{describe(layer)}: does not support the outputs of a discrete router; use "
            "CrossConnect, or remove k from the router before it"
        )
    shapes = [x.shape for x in xs]
    if not shapes or len(set(shapes)) > 1 or len(shapes[0]) < 2:
        raise ValueError(
            f"{describe(layer)}: needs one or more parallel tensors of one shape [b ... c], "
            f"got {shapes}"
        )
    return jnp.stack(xs) if isinstance(xs, Sequence) else xs


def describe(layer: nn.Module) -> str:
    """The class of a layer and its path in the network, for error messages."""
    return f"{type(layer).__name__} {'/'.join(layer.path) or '(top)'}"


def check_sizes(
    layer: nn.Module, shape: Sequence[Any], sizes: Mapping[str, int], count: int = 1
) -> None:
    """Raises ValueError if a size is below 1 or an input has no channels or pixels.

    Args:
      layer: the layer to name in errors.
      shape: shape of each input. The batch axis may be empty, or symbolic during export.
      sizes: attributes of the layer that must be positive, by name.
      count: number of inputs.
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
    """Applies ``module`` to m parallel tensors, each with its own parameters.

    All variables of ``module`` get a leading axis m. The results and the variables do not depend on
    ``execution``.

    Attributes:
      module: any Flax module that takes one tensor.
      execution: ``"unrolled"``: the paths run one after another; ``"grouped"``: together under
        ``vmap``, which makes one grouped convolution of m convolutions. Gradients of grouped
        convolutions are many times slower on a CPU.
    """

    module: nn.Module
    execution: str = "unrolled"

    def setup(self):
        nn.share_scope(self, self.module)  # adds no level to the variable tree

    def __call__(
        self, xs: Sequence[Array] | Float[Array, "m b *rest"] | ActivePaths, **kwargs
    ) -> Array | ActivePaths:
        """Applies the module to every path.

        Args:
          xs: m tensors ``[b ...]``, stacked, as a sequence, or as `ActivePaths`.
          **kwargs: passed to the module.

        Returns:
          The outputs, ``[m b ...]``; for `ActivePaths`, `ActivePaths` with the same paths active.

        Raises:
          ValueError: the tensors differ in shape, or ``execution`` is unknown.
        """
        if isinstance(xs, ActivePaths):
            ys = self._run(xs.tensors, xs.active, kwargs)
            active = jnp.expand_dims(xs.active, range(2, ys.ndim))
            return ActivePaths(jnp.where(active, ys, 0), xs.active)
        return self._run(stack_paths(self, xs), None, kwargs)

    def _run(self, xs, active, kwargs) -> Array:
        lift = {"variable_axes": {True: 0}, "split_rngs": {True: True}}
        if self.execution not in ("unrolled", "grouped"):
            raise ValueError(
                f"{describe(self)}: execution must be 'unrolled' or 'grouped', not "
                f"{self.execution!r}"
            )
        # vmap also for a single path: a scan of length 1 compiles to a loop, in which XLA's CPU
        # backend has no fast gradients of convolutions (it only canonicalizes those of the entry
        # computation). Initialization always uses scan: under vmap, Flax's random keys differ.
        grouped = self.execution == "grouped" or len(xs) == 1

        def run(module, given):
            x, active = given
            with only(active):
                return module(x, **kwargs)

        if grouped and not self.is_initializing():
            return nn.vmap(run, **lift)(self.module, (xs, active))
        scan = nn.scan(lambda module, _, x: (None, run(module, x)), unroll=len(xs), **lift)
        return scan(self.module, None, (xs, active))[1]
