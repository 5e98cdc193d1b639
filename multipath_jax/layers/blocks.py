"""The ordinary layers that paths are made of: convolution, normalization, dense."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from multipath_jax.layers import spread
from multipath_jax.layers.activity import BatchNorm
from multipath_jax.layers.convolution import convolve
from multipath_jax.layers.squeeze import SqueezeExcite


def max_pool_2x2(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """2x2 max-pooling with stride 2; the last row or column of an odd size is left out.

    The maximum of four strided slices, whose gradient is a few selections: the gradient of
    ``nn.max_pool`` is a scatter, which takes 25 times as long on a CPU. Equal maxima share the
    gradient here; behind a ReLU they are zeros and pass none on either way.

    Raises:
      ValueError: the maps are smaller than 2x2.
    """
    height, width = (size // 2 * 2 for size in x.shape[1:3])
    if not height or not width:
        raise ValueError(f"max_pool_2x2: maps of shape {x.shape} are too small to halve")
    rows = jnp.maximum(x[:, 0:height:2], x[:, 1:height:2])
    return jnp.maximum(rows[:, :, 0:width:2], rows[:, :, 1:width:2])


def batch_norm(
    train: bool,
    dtype: DTypeLike,
    scale_init: nn.initializers.Initializer = nn.initializers.ones,
    exact: bool = False,
) -> nn.BatchNorm:
    """BatchNorm as all layers here have it, over the whole batch, on however many devices.

    In a path that is active for some images, it is over those.

    Its variance is the mean square less the square of the mean, from one pass over the input. That
    is off where the mean is more than a hundred times the deviation: in float32 by 0.1 % at 100
    times, and at 10,000 times it is rounding alone. The layers here are given images normalized per
    channel; raw inputs far from zero want ``exact=True``, or to be normalized first.

    Args:
      train: whether to normalize by the batch, and to update the running statistics.
      dtype: of the output; parameters and statistics stay float32.
      scale_init: of the scale.
      exact: whether the variance is that of the differences from the mean, by a second pass.

    Returns:
      A module named ``norm``.
    """
    return BatchNorm(
        not train,
        momentum=0.9,
        epsilon=1e-5,
        scale_init=scale_init,
        dtype=dtype,
        axis_name=spread.batch_axis(),
        use_fast_variance=not exact,
        name="norm",
    )


class ConvNorm(nn.Module):
    """Convolution, BatchNorm and, unless told otherwise, ReLU.

    BatchNorm takes its statistics in float32 over the whole batch, on however many devices it
    lies. Unless told otherwise, initialization is He normal, for the ReLU that follows.

    Attributes:
      features: output channels.
      kernel: side of the square kernel.
      strides: the same both ways; padding keeps the size at stride 1.
      use_bias: whether the convolution has a bias of its own.
      relu: whether the output is rectified.
      dtype: of the computation; parameters and statistics stay float32.
      groups: parts into which the convolution splits its channels.
      kernel_init: of the convolution.
      scale_init: of BatchNorm's scale.
    """

    features: int
    kernel: int = 3
    strides: int = 1
    use_bias: bool = True
    relu: bool = True
    dtype: DTypeLike = jnp.float32
    groups: int = 1
    kernel_init: nn.initializers.Initializer = nn.initializers.he_normal()
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool = False
    ) -> Float[Array, "b h2 w2 f"]:
        x = nn.Conv(
            self.features,
            (self.kernel, self.kernel),
            self.strides,
            padding=self.kernel // 2,
            feature_group_count=self.groups,
            use_bias=self.use_bias,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            conv_general_dilated=convolve,
            name="conv",
        )(x)
        x = batch_norm(train, self.dtype, self.scale_init)(x)
        return nn.relu(x) if self.relu else x


class ConvStage(nn.Module):
    """3x3 convolutions with BatchNorm and ReLU, then, if asked, a 2x2 max-pooling.

    Attributes:
      features: output channels of each convolution.
      pool: whether to halve height and width at the end.
      dtype: of the computation.
      squeeze: whether Squeeze-and-Excitation rescales the channels after every convolution.
    """

    features: Sequence[int]
    pool: bool = False
    dtype: DTypeLike = jnp.float32
    squeeze: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool = False
    ) -> Float[Array, "b h2 w2 f"]:
        for number, features in enumerate(self.features, start=1):
            x = ConvNorm(features, dtype=self.dtype, name=f"conv_{number}")(x, train)
            if self.squeeze:
                x = SqueezeExcite(dtype=self.dtype, name=f"squeeze_{number}")(x)
        return max_pool_2x2(x) if self.pool else x


class DenseLayer(nn.Module):
    """A dense layer over the flattened input, BatchNorm if asked and, unless told otherwise, ReLU.

    Attributes:
      features: output features.
      relu: whether the output is rectified.
      dtype: of the computation.
      norm: whether BatchNorm comes between the two.
    """

    features: int
    relu: bool = True
    dtype: DTypeLike = jnp.float32
    norm: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b *rest"], train: bool = False) -> Float[Array, "b f"]:
        init = nn.initializers.he_normal() if self.relu else nn.initializers.lecun_normal()
        x = nn.Dense(self.features, kernel_init=init, dtype=self.dtype, name="dense")(
            x.reshape(x.shape[0], -1)
        )
        if self.norm:
            x = batch_norm(train, self.dtype)(x)
        return nn.relu(x) if self.relu else x
