"""HyperWRN40-2: a Wide ResNet whose kernels one small network generates (Table 3 quotes it)."""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from multipath_jax.layers import (
    Conv,
    HyperConv,
    KernelGenerator,
    NormReLU,
    PoolDense,
    PreActivationBlock,
    ResidualStack,
)
from multipath_jax.models.cifar_resnet import STACKS, STEM
from multipath_jax.models.family import Family
from multipath_jax.routing import gate_dtype


class HyperBlock(PreActivationBlock):
    """The block of Wide ResNets with generated 3x3 kernels; a projection keeps its own.

    Attributes:
      generator: shared by all blocks.
    """

    generator: KernelGenerator | None = None

    def _conv(self, number, features, kernel, strides=1):
        name = f"conv_{number}"
        return HyperConv(features, self.generator, strides, dtype=self.dtype, name=name)


class HyperWideResNet(nn.Module):
    """Ha et al., "HyperNetworks" (2017), Section 4.2: every 3x3 kernel of every block generated.

    The printed 0.148M leave no room for all of what surrounds the generated kernels: with their
    embeddings, the generator, stem, projections, BatchNorms and output there are 0.156M here.

    Attributes:
      num_classes: width of the output.
      blocks: to a stack; 6 make the 40 layers.
      width: by how much the stacks are wider than 16, 32 and 64 channels.
      dtype: of the computation; kernels are generated in float32.
    """

    num_classes: int
    blocks: int = 6
    width: int = 2
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w c"], train: bool = False
    ) -> Float[Array, "b classes"]:
        """Images -> logits."""
        generator = KernelGenerator(name="generator")
        x = Conv(STEM, dtype=self.dtype, name="stem")(images)
        for number, features in enumerate(STACKS, start=1):
            block = partial(
                HyperBlock, features * self.width, generator=generator, dtype=self.dtype
            )
            strides = 1 if number == 1 else 2
            x = ResidualStack(block, self.blocks, strides, name=f"stack_{number}")(x, train)
        x = NormReLU(self.dtype, name="norm")(x, train)
        x = PoolDense(self.num_classes, self.dtype, name="dense")(x)
        return x.astype(gate_dtype(x))


def hyper_wrn(num_classes: int, *, dtype: DTypeLike = jnp.float32) -> HyperWideResNet:
    """HyperWRN40-2.

    Args:
      num_classes: width of the output.
      dtype: of the computation.
    """
    return HyperWideResNet(num_classes, dtype=dtype)


FAMILIES: tuple[Family, ...] = (Family("HyperWRN40-2", hyper_wrn, ("HyperWRN40-2",)),)
