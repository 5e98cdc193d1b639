"""`lax.conv_general_dilated` with a workaround for slow kernel gradients on CPUs.

On CPUs, XLA computes the kernel gradient of a convolution from a transposed copy of its input. It
fuses the preceding operations, such as BatchNorm and ReLU, into the transposition, which makes them
many times slower. Materializing the input prevents the fusion and does not change the values
(docs/performance.md has the measurements).
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
      kernel: the kernel, in the layout given by the dimension numbers.
      *args: passed to `jax.lax.conv_general_dilated`.
      **options: passed to `jax.lax.conv_general_dilated`.

    Returns:
      The result of `jax.lax.conv_general_dilated`.
    """
    return lax.conv_general_dilated(_materialized(x), kernel, *args, **options)


@jax.custom_jvp
def _materialized(x: Array) -> Array:
    """The identity; when differentiated on a CPU, it copies ``x`` to a new array."""
    return x


@_materialized.defjvp
def _materialized_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (tangent,) = primals, tangents
    return lax.platform_dependent(x, cpu=_copy, default=lambda x: x), tangent


def _copy(x: Array) -> Array:
    """A copy that XLA neither removes nor fuses.

    It updates channel 0 with itself, at an index that is only known at run time. (XLA for CPUs
    removes `jax.lax.optimization_barrier` before fusion.)
    """
    above_range = lax.rng_uniform(jnp.float32(0), jnp.float32(1), ()) > 1
    return lax.dynamic_update_slice_in_dim(x, x[..., :1], above_range.astype(jnp.int32), axis=-1)
