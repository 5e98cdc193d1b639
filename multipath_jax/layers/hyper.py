"""Hypernetworks: convolution kernels generated from small embeddings by one shared network."""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from multipath_jax.layers.paths import check_sizes


class KernelGenerator(nn.Module):
    """Ha et al., "HyperNetworks" (2017), Eq. 2: embeddings to tiles of kernels.

    ``[... e] -> [... kernel kernel channels channels]``. Two linear layers: ``a_i = W_i z + B_i``
    for every input channel i of the tile, then ``W_out`` and ``B_out``, shared by all i, from
    ``a_i`` to the slice of the kernel for channel i.

    Attributes:
      channels: number of input and of output channels of a tile.
      kernel: height and width of the kernel.
      hidden: width of ``a_i``.
    """

    channels: int = 16
    kernel: int = 3
    hidden: int = 64

    @nn.compact
    def __call__(self, z: Float[Array, "*tiles e"]) -> Float[Array, "*tiles k k c c"]:
        c, k, d = self.channels, self.kernel, self.hidden
        check_sizes(self, z.shape, {"channels": c, "kernel": k, "hidden": d})
        init = nn.initializers.lecun_normal()
        # The generated kernels have the variance of He initialization for one tile.
        init_out = nn.initializers.variance_scaling(2 / (k * k * c), "fan_in", "normal")
        a = nn.DenseGeneral((c, d), kernel_init=init, name="hidden")(z)
        tile = nn.Dense(k * k * c, kernel_init=init_out, name="out")(a)
        tile = tile.reshape(*z.shape[:-1], c, k, k, c)  # [tiles, in, k, k, out]
        return jnp.moveaxis(tile, -4, -2)


class HyperConv(nn.Module):
    """A convolution without bias whose kernel is assembled from generated tiles.

    ``[b h w c] -> [b h/strides w/strides features]``. Both c and ``features`` must be multiples of
    the generator's channels. Ha et al., "HyperNetworks" (2017), Section 3.1.

    Attributes:
      features: number of output channels.
      generator: the kernel generator, shared by all layers of a network.
      strides: stride of the convolution.
      embedding: size of the learned embedding of each tile.
      dtype: type of the convolution.
    """

    features: int
    generator: KernelGenerator
    strides: int = 1
    embedding: int = 64
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool = False
    ) -> Float[Array, "b h2 w2 f"]:
        c = self.generator.channels
        sizes = {"features": self.features, "embedding": self.embedding, "channels": c}
        check_sizes(self, x.shape, sizes)
        if x.shape[-1] % c or self.features % c:
            raise ValueError(
                f"HyperConv: {x.shape[-1]} input and {self.features} output channels must be "
                f"multiples of {c}"
            )
        grid = (x.shape[-1] // c, self.features // c)
        init = nn.initializers.normal(grid[0] ** -0.5)  # scales the kernel by the fan-in in tiles
        tiles = self.generator(self.param("embedding", init, (*grid, self.embedding), jnp.float32))
        kernel = tiles.transpose(2, 3, 0, 4, 1, 5).reshape(*tiles.shape[2:4], -1, self.features)
        pad = kernel.shape[0] // 2
        return lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (self.strides, self.strides),
            [(pad, pad), (pad, pad)],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
