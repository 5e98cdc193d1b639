"""The ordinary layers that paths are made of: convolution, normalization, dense."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float


class ConvNorm(nn.Module):
    """Convolution, BatchNorm and, unless told otherwise, ReLU.

    BatchNorm takes its statistics in float32 over the whole batch, on however many devices it
    lies. Initialization is He normal, for the ReLU that follows.

    Attributes:
      features: output channels.
      kernel: side of the square kernel.
      strides: the same both ways; padding keeps the size at stride 1.
      use_bias: whether the convolution has a bias of its own.
      relu: whether the output is rectified.
      dtype: of the computation; parameters and statistics stay float32.
    """

    features: int
    kernel: int = 3
    strides: int = 1
    use_bias: bool = True
    relu: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool = False
    ) -> Float[Array, "b h2 w2 f"]:
        x = nn.Conv(
            self.features,
            (self.kernel, self.kernel),
            self.strides,
            padding=self.kernel // 2,
            use_bias=self.use_bias,
            kernel_init=nn.initializers.he_normal(),
            dtype=self.dtype,
            name="conv",
        )(x)
        x = nn.BatchNorm(not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype, name="norm")(x)
        return nn.relu(x) if self.relu else x


class ConvStage(nn.Module):
    """3x3 convolutions with BatchNorm and ReLU, then, if asked, a 2x2 max-pooling.

    Attributes:
      features: output channels of each convolution.
      pool: whether to halve height and width at the end.
      dtype: of the computation.
    """

    features: Sequence[int]
    pool: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool = False
    ) -> Float[Array, "b h2 w2 f"]:
        for number, features in enumerate(self.features, start=1):
            x = ConvNorm(features, dtype=self.dtype, name=f"conv_{number}")(x, train)
        return nn.max_pool(x, (2, 2), strides=(2, 2)) if self.pool else x


class DenseLayer(nn.Module):
    """A dense layer over the flattened input and, unless told otherwise, ReLU.

    Attributes:
      features: output features.
      relu: whether the output is rectified.
      dtype: of the computation.
    """

    features: int
    relu: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b *rest"], train: bool = False) -> Float[Array, "b f"]:
        init = nn.initializers.he_normal() if self.relu else nn.initializers.lecun_normal()
        x = nn.Dense(self.features, kernel_init=init, dtype=self.dtype, name="dense")(
            x.reshape(len(x), -1)
        )
        return nn.relu(x) if self.relu else x
