"""Squeeze-and-Excitation: rescaling channels by weights computed from the whole image."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from multipath_jax.layers.paths import check_sizes
from multipath_jax.routing import global_average_pool


class SqueezeExcite(nn.Module):
    """Hu et al., "Squeeze-and-Excitation Networks" (2018), Eqs. 2-4: ``x * s(x)``.

    ``s`` is global average pooling, a dense layer to ``c / ratio``, ReLU, a dense layer to ``c``
    and a sigmoid. ``[b h w c] -> [b h w c]``.

    Attributes:
      ratio: ratio of the number of channels to the hidden width, which is at least 1.
      dtype: type of the output; the weights of the channels are computed in float32.
    """

    ratio: int = 16
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b h w c"]:
        check_sizes(self, x.shape, {"ratio": self.ratio})
        channels = x.shape[-1]
        he = nn.initializers.he_normal()  # before a ReLU
        z = global_average_pool(x)
        z = nn.relu(nn.Dense(max(channels // self.ratio, 1), kernel_init=he, name="squeeze")(z))
        scale = jax.nn.sigmoid(nn.Dense(channels, name="excite")(z))
        return (x.astype(scale.dtype) * scale[:, None, None]).astype(self.dtype)
