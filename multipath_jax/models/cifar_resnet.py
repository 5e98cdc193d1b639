"""Section 6.3: residual networks for CIFAR, and their multi-path forms (Table 3)."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from multipath_jax.errors import UserError
from multipath_jax.layers import (
    BasicBlock,
    Conv,
    ConvCrossPredict,
    CrossConnect,
    Execution,
    NormReLU,
    PoolDense,
    PreActivationBlock,
    PreActivationBottleneck,
    ResidualStack,
    ResidualStem,
    Shortcut,
)
from multipath_jax.models.family import Family
from multipath_jax.models.multipath import MultiPath

Routing = Literal["none", "CC", "CP"]

STEM = 16
STACKS = (16, 32, 64)  # features; all stacks but the first halve height and width


def cifar_resnet(
    num_classes: int,
    *,
    depth: int,
    paths: int | None = None,
    routing: Routing = "none",
    shortcut: Shortcut = "projection",
    zero_init: bool = False,
    execution: Execution = "unrolled",
    custom_vjp: bool = True,
    dtype: DTypeLike = jnp.float32,
) -> MultiPath:
    """ResNet{6k+2} with three stacks of k basic blocks, with one path or many.

    Three depths of the form 6k+2 mean other networks: ResNet50 and ResNet152 are ImageNet's, and
    ResNet164 has pre-activation bottlenecks.

    Args:
      num_classes: width of the output.
      depth: 6k+2.
      paths: X, the number of parallel paths; None for the ordinary network.
      routing: ``"CC"``, cross-connections after the stem and after every stack, or ``"CP"``, a
        cross-prediction in place of the stem, and two before stacks 2 and 3. The paper does not
        say what the latter two look like; by its counts they keep the number of channels, and
        so, as each stack has its own strided start, the size.
      shortcut: where the shape changes, as in `layers.ResidualBlock`. By projection the counts of
        Table 3 are nearest: ResNet32-2-CC has 0.938M parameters against 0.932M, printed 0.94.
      zero_init: whether the last BatchNorm's scale of each block starts at zero.
      execution: how parallel paths run, as in `layers.Parallel`.
      custom_vjp: whether cross-connections use the written-out backward pass of Section 5.
      dtype: of the computation.

    Raises:
      UserError: the depth is not 6k+2.
    """
    blocks = _blocks(f"ResNet{depth}", depth, per_stack=6, others=2)
    block = partial(BasicBlock, shortcut=shortcut, zero_init=zero_init, dtype=dtype)
    layers = (
        ResidualStem(STEM, dtype=dtype, name="stem"),
        *_stacks(block, blocks),
        PoolDense(num_classes, dtype=dtype, name="dense"),
    )
    if routing == "CC":
        layers = _cross_connected(layers, paths, custom_vjp)
    elif routing == "CP":
        layers = _cross_predicted(layers, paths, execution, dtype)
    return MultiPath(tuple(layers), execution)


def _cross_connected(layers, paths, custom_vjp) -> Iterator[nn.Module]:
    """ResNet-X-CC: a router after every layer but the last."""
    *features, dense = layers
    for number, layer in enumerate(features, start=1):
        yield layer
        yield CrossConnect(paths, custom_vjp=custom_vjp, name=f"router_{number}")
    yield dense


def _cross_predicted(layers, paths, execution, dtype) -> Iterator[nn.Module]:
    """ResNet-X-CP: in place of the stem, and before stacks 2 and 3, a router of as many features
    as the tensors there have."""
    _, *stacks, dense = layers
    features_before = (STEM, *STACKS[:-1])
    for number, (stack, features) in enumerate(zip(stacks, features_before, strict=True), start=1):
        yield ConvCrossPredict(
            paths,
            features=features,
            use_bias=False,
            execution=execution,
            dtype=dtype,
            name=f"router_{number}",
        )
        yield stack
    yield dense


def resnet164(
    num_classes: int, *, shortcut: Shortcut = "projection", dtype: DTypeLike = jnp.float32
) -> MultiPath:
    """ResNet164: pre-activation bottlenecks [3], 18 to a stack. 1.70M, where Table 3 says 2.5."""
    block = partial(PreActivationBottleneck, shortcut=shortcut, dtype=dtype)
    return _preactivation(num_classes, block, blocks=18, widen=4, dtype=dtype)


def wide_resnet(
    num_classes: int,
    *,
    depth: int,
    width: int,
    shortcut: Shortcut = "projection",
    dtype: DTypeLike = jnp.float32,
) -> MultiPath:
    """WRN-d-k [7]: pre-activation basic blocks, k times as wide.

    Raises:
      UserError: the depth is not 6k+4.
    """
    blocks = _blocks(f"WRN-{depth}-{width}", depth, per_stack=6, others=4)
    block = partial(PreActivationBlock, shortcut=shortcut, dtype=dtype)
    return _preactivation(num_classes, block, blocks, widen=width, dtype=dtype)


def se_resnet(
    num_classes: int,
    *,
    depth: int,
    shortcut: Shortcut = "projection",
    dtype: DTypeLike = jnp.float32,
) -> MultiPath:
    """SEResNet{6k+2}: Squeeze-and-Excitation [38] on ResNet "with identity mappings [3]".

    Raises:
      UserError: the depth is not 6k+2.
    """
    blocks = _blocks(f"SEResNet{depth}", depth, per_stack=6, others=2)
    block = partial(PreActivationBlock, shortcut=shortcut, se_ratio=16, dtype=dtype)
    return _preactivation(num_classes, block, blocks, widen=1, dtype=dtype)


def _preactivation(num_classes, block, blocks, widen, dtype) -> MultiPath:
    """A network of pre-activation blocks: nothing follows the stem, BatchNorm and ReLU the end."""
    layers = (
        Conv(STEM, dtype=dtype, name="stem"),
        *_stacks(block, blocks, widen),
        NormReLU(dtype, name="norm"),
        PoolDense(num_classes, dtype=dtype, name="dense"),
    )
    return MultiPath(layers)


def _stacks(block: Callable[..., nn.Module], blocks: int, widen: int = 1) -> Iterator[nn.Module]:
    for number, features in enumerate(STACKS, start=1):
        strides = 1 if number == 1 else 2
        wide = partial(block, features * widen)
        yield ResidualStack(wide, blocks, strides, name=f"stack_{number}")


def _blocks(name: str, depth: int, per_stack: int, others: int) -> int:
    """The blocks to a stack, of two layers each; ``others`` counts the layers outside them."""
    blocks, rest = divmod(depth - others, per_stack)
    if blocks < 1 or rest:
        raise UserError(
            f"{name}: the depth is {per_stack}k+{others} with k at least 1, "
            f"such as {per_stack * max(blocks, 1) + others}"
        )
    return blocks


# Not these, which mean other networks.
_RESNET = r"ResNet(?!(?:18|34|50|101|152|164)(?!\d))(?P<depth>\d+)"

FAMILIES: tuple[Family, ...] = (
    Family(
        _RESNET,
        partial(cifar_resnet, paths=None, routing="none"),
        ("ResNet20", "ResNet32", "ResNet110"),
    ),
    Family("ResNet164", resnet164, ("ResNet164",)),
    Family(r"WRN-(?P<depth>\d+)-(?P<width>\d+)", wide_resnet, ("WRN-40-2",)),
    Family(r"SEResNet(?P<depth>\d+)", se_resnet, ("SEResNet110",)),
    Family(
        rf"{_RESNET}-(?P<paths>\d+)-CP",
        partial(cifar_resnet, routing="CP"),
        ("ResNet20-2-CP", "ResNet20-3-CP", "ResNet20-4-CP"),
    ),
    Family(
        rf"{_RESNET}-(?P<paths>\d+)-CC",
        partial(cifar_resnet, routing="CC"),
        tuple(f"ResNet{depth}-{paths}-CC" for depth in (20, 32) for paths in (2, 3, 4)),
        discrete=True,
    ),
)
