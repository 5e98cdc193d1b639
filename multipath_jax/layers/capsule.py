"""Capsules: groups of units whose length says whether something is there, routed by agreement."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

_TINY = 1e-12  # under square roots: the gradient of a length is undefined at zero


def squash(s: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Eq. 1 of Sabour et al. (2017): keeps the direction, brings the length below one."""
    squared = jnp.sum(s**2, axis=-1, keepdims=True)
    return s * jnp.sqrt(squared + _TINY) / (1 + squared)


def length(v: Float[Array, "*b d"]) -> Float[Array, "*b"]:
    """The length of each capsule."""
    return jnp.sqrt(jnp.sum(v**2, axis=-1) + _TINY)


def route_by_agreement(
    predictions: Float[Array, "b i j d"], iterations: int = 3
) -> Float[Array, "b j d"]:
    """Procedure 1 of Sabour et al. (2017): i capsules' predictions of j capsules -> those j.

    Each input divides itself among the outputs by a softmax of logits that begin equal and grow
    with the agreement (scalar product) of its prediction and the output.
    """
    logits = jnp.zeros_like(predictions[..., 0])
    for iteration in range(iterations):
        if iteration:
            logits += jnp.einsum("bijd,bjd->bij", predictions, outputs)
        coupling = jax.nn.softmax(logits)
        outputs = squash(jnp.einsum("bij,bijd->bjd", coupling, predictions))
    return outputs


class PrimaryCapsules(nn.Module):
    """A convolution whose channels are read as ``types`` capsules at every pixel.

    Attributes:
      types: capsules per pixel.
      size: units per capsule.
      kernel: side of the convolution.
      strides: of the convolution.
      dtype: of the convolution; capsules are float32.
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
        # In two steps, each of which keeps to the axes along which a batch is split.
        x = x.astype(jnp.float32).reshape(*x.shape[:-1], self.types, self.size)
        return squash(x.reshape(x.shape[0], -1, self.size))


class RoutedCapsules(nn.Module):
    """Capsules predicted by those below through one matrix per pair, and routed by agreement.

    Attributes:
      count: j, capsules of this layer.
      size: units per capsule.
      iterations: of the routing.
    """

    count: int
    size: int = 16
    iterations: int = 3

    @nn.compact
    def __call__(self, us: Float[Array, "b i d"]) -> Float[Array, "b j e"]:
        inputs, width = us.shape[1:]
        # Each pair's matrix is a dense layer from `width` units: the pairs are batch axes.
        init = nn.initializers.lecun_normal(in_axis=2, out_axis=3, batch_axis=(0, 1))
        matrices = self.param("matrices", init, (inputs, self.count, width, self.size), jnp.float32)
        predictions = jnp.einsum("bid,ijde->bije", us, matrices)
        return route_by_agreement(predictions, self.iterations)
