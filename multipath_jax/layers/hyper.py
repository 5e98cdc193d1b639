"""Hypernetworks: convolution kernels generated from small embeddings by one shared network."""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from multipath_jax.layers.paths import check_sizes


class KernelGenerator(nn.Module):
    """Ha et al., "HyperNetworks" (2017), Eq. 2: embeddings ``z`` -> tiles of kernels.

    Two linear layers: ``a_i = W_i z + B_i`` for every input channel i of the tile, then one
    ``W_out`` and ``B_out``, shared by all i, from ``a_i`` to that channel's slice of the kernel.

    Attributes:
      channels: input and output channels of a tile.
      kernel: side of a tile's kernel.
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
        # The kernels that come out have the variance of a layer before a ReLU on one tile.
        init_out = nn.initializers.variance_scaling(2 / (k * k * c), "fan_in", "normal")
        a = nn.DenseGeneral((c, d), kernel_init=init, name="hidden")(z)
        tile = nn.Dense(k * k * c, kernel_init=init_out, name="out")(a)
        tile = tile.reshape(*z.shape[:-1], c, k, k, c)  # [tiles, in, k, k, out]
        return jnp.moveaxis(tile, -4, -2)


class HyperConv(nn.Module):
    """A convolution whose kernel is put together from generated tiles; without bias.

    Attributes:
      features: output channels, a multiple of the generator's, as the input's must be.
      generator: shared by all layers that it makes kernels for.
      strides: of the convolution.
      embedding: size of every tile's learned embedding.
      dtype: of the convolution.
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
                f"HyperConv: {x.shape[-1]} to {self.features} channels, not multiples of {c}"
            )
        grid = (x.shape[-1] // c, self.features // c)
        init = nn.initializers.normal(grid[0] ** -0.5)  # the more inputs, the smaller the kernel
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
