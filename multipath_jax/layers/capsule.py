"""Capsules (Sabour et al., 2017): vectors whose length is the probability of a feature."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

_EPSILON = 1e-12  # under square roots, whose gradient is infinite at zero


def squash(s: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Eq. 1 of Sabour et al. (2017): scales vectors to a length below 1, ``[... d] -> [... d]``."""
    squared = jnp.sum(s**2, axis=-1, keepdims=True)
    return s * jnp.sqrt(squared + _EPSILON) / (1 + squared)


def length(v: Float[Array, "*b d"]) -> Float[Array, "*b"]:
    """The length of each capsule, ``[... d] -> [...]``."""
    return jnp.sqrt(jnp.sum(v**2, axis=-1) + _EPSILON)


def route_by_agreement(
    predictions: Float[Array, "b i j d"], iterations: int = 3
) -> Float[Array, "b j d"]:
    """Dynamic routing: Procedure 1 of Sabour et al. (2017).

    The coupling coefficients of each input are a softmax over the outputs. Its logits start at zero
    and grow with the agreement (scalar product) between the input's prediction and the output.

    Args:
      predictions: predictions of the j output capsules by the i input capsules, ``[b i j d]``.
      iterations: number of routing iterations.

    Returns:
      The output capsules, ``[b j d]``.
    """
    logits = jnp.zeros_like(predictions[..., 0])
    for iteration in range(iterations):
        if iteration:
            logits += jnp.einsum("bijd,bjd->bij", predictions, outputs)
        coupling = jax.nn.softmax(logits)
        outputs = squash(jnp.einsum("bij,bijd->bjd", coupling, predictions))
    return outputs


class PrimaryCapsules(nn.Module):
    """A convolution whose output channels are grouped into capsules, and `squash`.

    ``[b h w c] -> [b i size]``, with ``types`` capsules at every output pixel (Sabour et al., 2017,
    Section 4).

    Attributes:
      types: number of capsules per pixel.
      size: number of units per capsule.
      kernel: height and width of the kernel.
      strides: stride of the convolution.
      dtype: type of the convolution; capsules are float32.
    """

    types: int = 32
    size: int = 8
    kernel: int = 9
    strides: int = 2
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i d"]:
        window = (self.kernel, self.kernel)
        x = nn.Conv(
            self.types * self.size,
            window,
            self.strides,
            padding="VALID",
            dtype=self.dtype,
            name="conv",
        )(x)
        # Two reshapes, each of which keeps the axis over which the batch is sharded.
        x = x.astype(jnp.float32).reshape(*x.shape[:-1], self.types, self.size)
        return squash(x.reshape(x.shape[0], -1, self.size))


class RoutedCapsules(nn.Module):
    """A capsule layer: one matrix per pair of capsules, and `route_by_agreement`.

    ``[b i d] -> [b count size]`` (Sabour et al., 2017, Section 4).

    Attributes:
      count: j, the number of output capsules.
      size: number of units per output capsule.
      iterations: number of routing iterations.
    """

    count: int
    size: int = 16
    iterations: int = 3

    @nn.compact
    def __call__(self, us: Float[Array, "b i d"]) -> Float[Array, "b j e"]:
        inputs, width = us.shape[1:]
        # For the initializer, every pair is a separate dense layer.
        init = nn.initializers.lecun_normal(in_axis=2, out_axis=3, batch_axis=(0, 1))
        matrices = self.param("matrices", init, (inputs, self.count, width, self.size), jnp.float32)
        predictions = jnp.einsum("bid,ijde->bije", us, matrices)
        return route_by_agreement(predictions, self.iterations)
