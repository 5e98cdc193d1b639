"""Highway layers: a learned gate interpolates between the input and a transformation of it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float


class ConvHighway(nn.Module):
    """Srivastava et al., "Highway Networks" (2015), Eq. 3: ``T(x) H(x) + (1 - T(x)) x``.

    H is a convolution with a ReLU, T a convolution with a sigmoid; both keep the shape:
    ``[b h w c] -> [b h w c]``.

    Attributes:
      kernel: height and width of both kernels.
      gate_bias: initial bias of T; negative, so that at first the input passes unchanged.
      dtype: type of the computation.
    """

    kernel: int = 3
    gate_bias: float = -2.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b h w c"]:
        channels, window = x.shape[-1], (self.kernel, self.kernel)
        he, constant = nn.initializers.he_normal(), nn.initializers.constant
        options = {"padding": "SAME", "kernel_init": he, "dtype": self.dtype}
        h = nn.relu(nn.Conv(channels, window, name="transform", **options)(x))
        t = nn.Conv(channels, window, bias_init=constant(self.gate_bias), name="gate", **options)(x)
        t = jax.nn.sigmoid(t)
        return t * h + (1 - t) * x
