"""The layers of a path: convolution, BatchNorm, pooling, dense."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from multipath_jax.layers import sharding
from multipath_jax.layers.activity import BatchNorm
from multipath_jax.layers.convolution import convolve
from multipath_jax.layers.squeeze import SqueezeExcite


def max_pool_2x2(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """2x2 max-pooling with stride 2; the last row or column of an odd size is dropped.

    Computed as the maximum of four strided slices, whose gradient consists of selections: the
    gradient of ``nn.max_pool`` is a scatter, which takes 25 times as long on a CPU. Equal maxima
    share the gradient, unlike in ``nn.max_pool``; after a ReLU these are zeros, without a gradient.

    Args:
      x: ``[b h w c]``.

    Returns:
      ``[b h//2 w//2 c]``.

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
    """The BatchNorm of all layers, with statistics over the whole batch on all devices.

    By default the variance is the mean square minus the squared mean, in one pass over the input.
    In float32 its relative error is 0.1 % for a mean of 100 standard deviations, and it is rounding
    error only at 10,000. For inputs that are not normalized, use ``exact=True``.

    In a path behind a discrete router, the statistics are those of the active images (D6).

    Args:
      train: whether to normalize by the statistics of the batch and update the running statistics.
      dtype: type of the output; parameters and statistics are float32.
      scale_init: initializer of the scale.
      exact: whether to compute the variance from differences to the mean, in a second pass.

    Returns:
      A module named ``norm``.
    """
    return BatchNorm(
        not train,
        momentum=0.9,
        epsilon=1e-5,
        scale_init=scale_init,
        dtype=dtype,
        axis_name=sharding.batch_axis(),
        use_fast_variance=not exact,
        name="norm",
    )


class ConvNorm(nn.Module):
    """Convolution, BatchNorm and ReLU: ``[b h w c] -> [b h/strides w/strides features]``.

    BatchNorm computes its statistics in float32 over the whole batch on all devices.

    Attributes:
      features: number of output channels.
      kernel: height and width of the kernel.
      strides: stride in both directions; with stride 1, padding keeps the size.
      use_bias: whether the convolution has a bias.
      relu: whether to apply a ReLU.
      dtype: type of the computation; parameters and statistics are float32.
      groups: number of groups of channels of the convolution.
      kernel_init: initializer of the kernel; He normal by default.
      scale_init: initializer of BatchNorm's scale.
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
    """3x3 convolutions with BatchNorm and ReLU, and an optional 2x2 max-pooling.

    Attributes:
      features: number of output channels of each convolution.
      pool: whether to end with a 2x2 max-pooling.
      dtype: type of the computation.
      squeeze: whether a Squeeze-and-Excitation layer follows every convolution.
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


def adaptive_average_pool(x: Float[Array, "b h w c"], side: int) -> Float[Array, "b side side c"]:
    """Means over ``side`` x ``side`` windows that cover the maps, as PyTorch divides them.

    Window i of n rows goes from ``floor(i n / side)`` to ``ceil((i + 1) n / side)``: where n is no
    multiple of ``side``, windows overlap.
    """
    rows, columns = (_windows(size, side) for size in x.shape[1:3])
    return jnp.einsum(
        "bhwc,ih,jw->bijc", x, jnp.asarray(rows, x.dtype), jnp.asarray(columns, x.dtype)
    )


def _windows(size: int, side: int) -> Float[np.ndarray, "side size"]:
    """The weights of the rows in each window."""
    start = np.arange(side) * size // side
    end = -(-np.arange(1, side + 1) * size // side)
    at = np.arange(size)
    inside = (start[:, None] <= at) & (at < end[:, None])
    return inside / inside.sum(1, keepdims=True)


class DenseLayer(nn.Module):
    """A dense layer over the flattened input, BatchNorm if asked and, unless told otherwise, ReLU.

    Attributes:
      features: output features.
      relu: whether the output is rectified.
      dtype: of the computation.
      norm: whether BatchNorm comes between the two.
      side: to which maps are brought first (`adaptive_average_pool`); 0: they stay as they are.
    """

    features: int
    relu: bool = True
    dtype: DTypeLike = jnp.float32
    norm: bool = False
    side: int = 0

    @nn.compact
    def __call__(self, x: Float[Array, "b *rest"], train: bool = False) -> Float[Array, "b f"]:
        if self.side and x.shape[1:3] != (self.side, self.side):
            x = adaptive_average_pool(x, self.side)
        init = nn.initializers.he_normal() if self.relu else nn.initializers.lecun_normal()
        x = nn.Dense(self.features, kernel_init=init, dtype=self.dtype, name="dense")(
            x.reshape(x.shape[0], -1)
        )
        if self.norm:
            x = batch_norm(train, self.dtype)(x)
        return nn.relu(x) if self.relu else x
