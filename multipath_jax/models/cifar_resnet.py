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
    """ResNet{6k+2} for CIFAR [2]: three stacks of k basic blocks, with one path or several.

    Three names of this form are other networks: ResNet50 and ResNet152 are for ImageNet, and
    ResNet164 has pre-activation bottlenecks.

    Args:
      num_classes: width of the output.
      depth: 6k+2.
      paths: X, the number of parallel paths; None: one path without routers.
      routing: ``"CC"``: cross-connections after the stem and after every stack (Fig. 7);
        ``"CP"``: a cross-prediction in place of the stem, and one each before stacks 2 and 3. The
        paper does not describe the latter two; from its parameter counts, they keep the number of
        channels and the size.
      shortcut: the shortcut where the shape changes, as in `layers.ResidualBlock`. Projections
        match Table 3 best: ResNet32-2-CC has 0.938M parameters (with identities 0.932M), printed
        0.94.
      zero_init: whether to initialize the scale of the last BatchNorm of each block with zero.
      execution: how parallel paths run, as in `layers.Parallel`.
      custom_vjp: as in `layers.CrossConnect`.
      dtype: type of the computation.

    Returns:
      The network.

    Raises:
      UserError: the depth is not of the form 6k+2.
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
    """ResNet-X-CC: a router after every layer except the last."""
    *features, dense = layers
    for number, layer in enumerate(features, start=1):
        yield layer
        yield CrossConnect(paths, custom_vjp=custom_vjp, name=f"router_{number}")
    yield dense


def _cross_predicted(layers, paths, execution, dtype) -> Iterator[nn.Module]:
    """ResNet-X-CP: routers that keep the number of channels, in place of the stem and before
    stacks 2 and 3."""
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
    """ResNet164: 18 pre-activation bottlenecks [3] per stack; 1.70M parameters (Table 3: 2.5M)."""
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
    """WRN-d-k [7]: d layers of pre-activation basic blocks, k times as wide as in ResNets.

    Raises:
      UserError: the depth is not of the form 6k+4.
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
    """SEResNet{6k+2}: pre-activation basic blocks [3] with Squeeze-and-Excitation [38].

    Raises:
      UserError: the depth is not of the form 6k+2.
    """
    blocks = _blocks(f"SEResNet{depth}", depth, per_stack=6, others=2)
    block = partial(PreActivationBlock, shortcut=shortcut, se_ratio=16, dtype=dtype)
    return _preactivation(num_classes, block, blocks, widen=1, dtype=dtype)


def _preactivation(num_classes, block, blocks, widen, dtype) -> MultiPath:
    """A network of pre-activation blocks: a bare convolution first, BatchNorm and ReLU last."""
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
    """The number of blocks per stack, for ``others`` layers outside of the blocks."""
    blocks, rest = divmod(depth - others, per_stack)
    if blocks < 1 or rest:
        raise UserError(
            f"{name}: the depth must be {per_stack}k+{others} with k at least 1, "
            f"such as {per_stack * max(blocks, 1) + others}"
        )
    return blocks


# All depths except those of other networks.
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
