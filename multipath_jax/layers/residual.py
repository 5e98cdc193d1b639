"""The parts of residual networks: stem, blocks, stacks of blocks, head (Sections 6.3 and 6.4).

Convolutions have no bias, since a BatchNorm follows or precedes each. They are initialized as He
normal with fan-out, as in the reference implementations: He et al.'s and its Torch version [60],
Wide ResNets [7], torchvision.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from multipath_jax.layers.blocks import ConvNorm, batch_norm
from multipath_jax.layers.convolution import convolve
from multipath_jax.layers.squeeze import SqueezeExcite
from multipath_jax.routing import global_average_pool

Shortcut = Literal["projection", "identity"]

_HE_FAN_OUT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
_ResidualConvNorm = partial(ConvNorm, use_bias=False, kernel_init=_HE_FAN_OUT)


# --- The parts -----------------------------------------------------------------------------------


class Conv(nn.Module):
    """A convolution without bias: ``[b h w c] -> [b h/strides w/strides features]``.

    Attributes:
      features: number of output channels.
      kernel: height and width of the kernel.
      strides: stride in both directions; with stride 1, padding keeps the size.
      dtype: type of the computation.
    """

    features: int
    kernel: int = 3
    strides: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool = False
    ) -> Float[Array, "b h2 w2 f"]:
        return nn.Conv(
            self.features,
            (self.kernel, self.kernel),
            self.strides,
            padding=self.kernel // 2,
            use_bias=False,
            kernel_init=_HE_FAN_OUT,
            dtype=self.dtype,
            conv_general_dilated=convolve,
            name="conv",
        )(x)


class NormReLU(nn.Module):
    """BatchNorm and ReLU, which precede each convolution in pre-activation networks.

    Attributes:
      dtype: type of the computation; parameters and statistics are float32.
    """

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b h w c"]:
        return nn.relu(batch_norm(train, self.dtype)(x))


class ResidualStem(nn.Module):
    """The layers before the first block: convolution, BatchNorm, ReLU, and optional max-pooling.

    Attributes:
      features: number of output channels.
      kernel: height and width of the kernel: 3 for CIFAR, 7 for ImageNet.
      downsample: whether to halve height and width twice, as for ImageNet: by a strided convolution
        and by a 3x3 max-pooling with padding 1, as in torchvision.
      dtype: type of the computation.
    """

    features: int
    kernel: int = 3
    downsample: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool = False
    ) -> Float[Array, "b h2 w2 f"]:
        strides = 2 if self.downsample else 1
        conv = _ResidualConvNorm(self.features, self.kernel, strides, dtype=self.dtype, name="conv")
        x = conv(x, train)
        return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1))) if self.downsample else x


class PoolDense(nn.Module):
    """The head of a residual network: global average pooling, dense layer (``[b h w c] -> [b f]``).

    Attributes:
      features: number of output features (classes).
      dtype: type of the computation.
    """

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b f"]:
        return nn.Dense(self.features, dtype=self.dtype, name="dense")(global_average_pool(x))


# --- The blocks ----------------------------------------------------------------------------------


class ResidualBlock(nn.Module):
    """What the four blocks share: ``residual(x) + shortcut(x)``, and what the shortcut may be.

    The shortcut is x itself where the shape stays. Where it changes, ``"projection"`` is a 1x1
    convolution, and ``"identity"`` every strides-th pixel of x with zeros for the new channels,
    which costs no parameters (options B and A of He et al. [2]).

    Attributes:
      features: output channels.
      strides: of the block's 3x3 convolution, the first if there are two.
      shortcut: ``"projection"`` or ``"identity"``.
      se_ratio: if given, Squeeze-and-Excitation of that ratio rescales the residual [38].
      dtype: of the computation.
    """

    features: int
    strides: int = 1
    shortcut: Shortcut = "projection"
    se_ratio: int | None = None
    dtype: DTypeLike = jnp.float32

    def _changes_shape(self, x) -> bool:
        return self.strides != 1 or x.shape[-1] != self.features

    def _recalibrated(self, y: Float[Array, "b h w f"]) -> Float[Array, "b h w f"]:
        if self.se_ratio is None:
            return y
        return SqueezeExcite(self.se_ratio, self.dtype, name="squeeze_excite")(y)

    def _padded(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 f"]:
        """The identity shortcut across a change of shape; with fewer features, the first ones."""
        x = x[:, :: self.strides, :: self.strides, : self.features]
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, self.features - x.shape[-1])))


class _PostActivation(ResidualBlock):
    """The original residual block: ``ReLU(residual(x) + shortcut(x))`` [2].

    Attributes:
      zero_init: whether to initialize the scale of the last BatchNorm with zero. The residual is
        then zero at first, and the block without a projection the identity.
    """

    zero_init: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool = False
    ) -> Float[Array, "b h2 w2 f"]:
        y = self._recalibrated(self._residual(x, train))
        return nn.relu(y + self._shortcut(x, train))

    def _shortcut(self, x, train) -> Array:
        if not self._changes_shape(x):
            return x
        if self.shortcut == "identity":
            return self._padded(x)
        return self._conv("projection", self.features, 1, self.strides, relu=False)(x, train)

    def _conv(self, name, features, kernel, strides=1, **options) -> ConvNorm:
        options = {"dtype": self.dtype, "name": name, **options}
        return _ResidualConvNorm(features, kernel, strides, **options)

    def _last_conv(self, name, kernel) -> ConvNorm:
        scale_init = nn.initializers.zeros if self.zero_init else nn.initializers.ones
        return self._conv(name, self.features, kernel, relu=False, scale_init=scale_init)


class BasicBlock(_PostActivation):
    """Two 3x3 convolutions and a shortcut: ``[b h w c] -> [b h/strides w/strides features]``."""

    def _residual(self, x, train) -> Array:
        y = self._conv("conv_1", self.features, 3, self.strides)(x, train)
        return self._last_conv("conv_2", 3)(y, train)


class Bottleneck(_PostActivation):
    """1x1, 3x3 and 1x1 convolutions and a shortcut, with shapes as in `BasicBlock`.

    The 3x3 convolution has the strides, as in torchvision (v1.5). A larger ``width`` makes the
    bottleneck of Wide ResNets, ``groups > 1`` that of ResNeXt [8].

    Attributes:
      width: channels of the first two convolutions; None: a quarter of ``features``.
      groups: groups of the 3x3 convolution.
    """

    width: int | None = None
    groups: int = 1

    def _residual(self, x, train) -> Array:
        width = self.width or self.features // 4
        y = self._conv("conv_1", width, 1)(x, train)
        y = self._conv("conv_2", width, 3, self.strides, groups=self.groups)(y, train)
        return self._last_conv("conv_3", 1)(y, train)


class _PreActivation(ResidualBlock):
    """The pre-activation block: ``residual(a) + shortcut`` with ``a = ReLU(BatchNorm(x))`` [3].

    A projection is applied to ``a`` and has no BatchNorm, as in the code of He et al. and of Wide
    ResNets. There is no ``zero_init``: with a ReLU after the last BatchNorm, a scale of zero and
    the convolution that follows would never get a gradient.
    """

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool = False
    ) -> Float[Array, "b h2 w2 f"]:
        a = self._norm(1)(x, train)
        y = self._recalibrated(self._residual(a, train))
        return y + self._shortcut(x, a)

    def _shortcut(self, x, a) -> Array:
        if not self._changes_shape(x):
            return x
        if self.shortcut == "identity":
            return self._padded(x)
        return Conv(self.features, 1, self.strides, self.dtype, name="projection")(a)

    def _norm(self, number) -> NormReLU:
        return NormReLU(self.dtype, name=f"norm_{number}")

    def _conv(self, number, features, kernel, strides=1) -> Conv:
        return Conv(features, kernel, strides, self.dtype, name=f"conv_{number}")


class PreActivationBlock(_PreActivation):
    """Two 3x3 convolutions, each preceded by BatchNorm and ReLU; shapes as in `BasicBlock`."""

    def _residual(self, a, train) -> Array:
        y = self._conv(1, self.features, 3, self.strides)(a)
        return self._conv(2, self.features, 3)(self._norm(2)(y, train))


class PreActivationBottleneck(_PreActivation):
    """1x1, 3x3 (strided) and 1x1 convolutions, each preceded by BatchNorm and ReLU.

    The first two have a quarter of the features. Shapes as in `BasicBlock`.
    """

    def _residual(self, a, train) -> Array:
        y = self._conv(1, self.features // 4, 1)(a)
        y = self._conv(2, self.features // 4, 3, self.strides)(self._norm(2)(y, train))
        return self._conv(3, self.features, 1)(self._norm(3)(y, train))


class ResidualStack(nn.Module):
    """A sequence of residual blocks, the first of which may be strided.

    Attributes:
      block: a factory of blocks, called with ``strides=`` and ``name=``.
      blocks: number of blocks.
      strides: stride of the first block.
    """

    block: Callable[..., nn.Module]
    blocks: int
    strides: int = 1

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool = False
    ) -> Float[Array, "b h2 w2 f"]:
        for number in range(1, self.blocks + 1):
            strides = self.strides if number == 1 else 1
            x = self.block(strides=strides, name=f"block_{number}")(x, train)
        return x
