"""Section 6.4: residual networks for ImageNet, and their multi-path forms (Table 4)."""

import re
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from multipath_jax.layers import (
    BasicBlock,
    Bottleneck,
    CrossConnect,
    Execution,
    PoolDense,
    ResidualStack,
    ResidualStem,
)
from multipath_jax.models.family import IMAGENET, Family
from multipath_jax.models.multipath import MultiPath

STEM = 64
STACKS = (64, 128, 256, 512)  # width of the 3x3 convolutions of each stack, for widen=1


class Structure(NamedTuple):
    """The structure of a network.

    Attributes:
      blocks: number of blocks in each stack.
      bottleneck: whether the blocks are bottlenecks or basic blocks.
      widen: factor of the width of the 3x3 convolutions; it also multiplies the output channels of
        basic blocks, but not those of bottlenecks.
      groups: number of groups of the 3x3 convolutions.
    """

    blocks: tuple[int, int, int, int]
    bottleneck: bool = False
    widen: float = 1
    groups: int = 1


STRUCTURES = {
    "ResNet18": Structure((2, 2, 2, 2)),
    "ResNet34": Structure((3, 4, 6, 3)),
    "ResNet50": Structure((3, 4, 6, 3), bottleneck=True),
    "ResNet101": Structure((3, 4, 23, 3), bottleneck=True),
    "ResNet152": Structure((3, 8, 36, 3), bottleneck=True),
    "WRN-18-1.5": Structure((2, 2, 2, 2), widen=1.5),
    "WideResNet50-2": Structure((3, 4, 6, 3), bottleneck=True, widen=2),
    "ResNeXt50-2-64": Structure((3, 4, 6, 3), bottleneck=True, widen=2, groups=2),  # "2x64d" [8]
}


def imagenet_resnet(
    structure: str,
    num_classes: int,
    *,
    paths: int | None = None,
    zero_init: bool = False,
    execution: Execution = "unrolled",
    custom_vjp: bool = True,
    dtype: DTypeLike = jnp.float32,
) -> MultiPath:
    """One of Table 4's networks as torchvision defines them, with one path or several.

    Args:
      structure: a key of `STRUCTURES`.
      num_classes: width of the output.
      paths: X, the number of parallel paths, with cross-connections after the max-pooling and after
        every stack; None: one path without routers.
      zero_init: whether to initialize the scale of the last BatchNorm of each block with zero.
      execution: how parallel paths run, as in `layers.Parallel`.
      custom_vjp: as in `layers.CrossConnect`.
      dtype: type of the computation.

    Returns:
      The network.
    """
    stem = ResidualStem(STEM, kernel=7, downsample=True, dtype=dtype, name="stem")
    stacks = _stacks(STRUCTURES[structure], zero_init, dtype)
    layers = []
    for number, layer in enumerate((stem, *stacks), start=1):
        layers.append(layer)
        if paths is not None:
            layers.append(CrossConnect(paths, custom_vjp=custom_vjp, name=f"router_{number}"))
    layers.append(PoolDense(num_classes, dtype=dtype, name="dense"))
    return MultiPath(tuple(layers), execution)


def _stacks(structure: Structure, zero_init, dtype) -> Iterator[nn.Module]:
    for number, (width, blocks) in enumerate(zip(STACKS, structure.blocks, strict=True), start=1):
        wide = int(width * structure.widen)
        if structure.bottleneck:
            block = partial(Bottleneck, 4 * width, width=wide, groups=structure.groups)
        else:
            block = partial(BasicBlock, wide)
        block = partial(block, zero_init=zero_init, dtype=dtype)
        yield ResidualStack(block, blocks, 1 if number == 1 else 2, name=f"stack_{number}")


def _families(structure: str) -> tuple[Family, ...]:
    build = partial(imagenet_resnet, structure)
    single = Family(re.escape(structure), partial(build, paths=None), _named(structure), IMAGENET)
    if not structure.startswith("ResNet"):  # the names of the others end in numbers already
        return (single,)
    routed = Family(
        rf"{structure}-(?P<paths>\d+)-CC",
        build,
        _named(f"{structure}-2-CC"),
        IMAGENET,
        discrete=True,
    )
    return (single, routed)


def _named(name: str) -> tuple[str, ...]:
    """The name as a tuple, empty if the paper does not use the network."""
    others = ("ResNet152", "ResNet34-2-CC", "ResNet101-2-CC", "ResNet152-2-CC")
    return () if name in others else (name,)


FAMILIES: tuple[Family, ...] = tuple(
    family for structure in STRUCTURES for family in _families(structure)
)
