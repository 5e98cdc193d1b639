"""The convolution of the blocks: XLA's own, with its input kept in memory while training on CPUs.

XLA computes a convolution's kernel gradient on CPUs from a transposed copy of its input. It fuses
what comes before, such as BatchNorm and ReLU, into that transposition, where it runs at a fraction
of its speed. An input that has been written out as an array is transposed as it is; the values are
the same (see docs/performance.md for the figures).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def convolve(
    x: Float[Array, "b *space c"], kernel: Float[Array, "..."], *args: Any, **options: Any
) -> Float[Array, "b *space2 f"]:
    """`jax.lax.conv_general_dilated`, to be passed to ``nn.Conv(conv_general_dilated=...)``.

    Args:
      x: the input.
      kernel: the kernel, in the layout that the dimension numbers say.
      *args: as of `jax.lax.conv_general_dilated`.
      **options: as of `jax.lax.conv_general_dilated`.

    Returns:
      What `jax.lax.conv_general_dilated` returns.
    """
    return lax.conv_general_dilated(_written_out(x), kernel, *args, **options)


@jax.custom_jvp
def _written_out(x: Array) -> Array:
    """The identity. Where it is differentiated on a CPU, its result is an array of its own."""
    return x


@_written_out.defjvp
def _written_out_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (tangent,) = primals, tangents
    return lax.platform_dependent(x, cpu=_copy, default=lambda x: x), tangent


def _copy(x: Array) -> Array:
    """A copy that XLA neither removes nor fuses: it replaces channel 0 by itself, at an index that
    is known at run time alone. (XLA for CPUs drops `jax.lax.optimization_barrier` before it fuses.)
    """
    above_range = lax.rng_uniform(jnp.float32(0), jnp.float32(1), ()) > 1
    return lax.dynamic_update_slice_in_dim(x, x[..., :1], above_range.astype(jnp.int32), axis=-1)
