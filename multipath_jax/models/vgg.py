"""VGG networks: VGG16 for CIFAR (Table 2), the network that Section 7 looks into, torchvision's."""

from collections.abc import Iterator
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from multipath_jax.layers import ConvStage, CrossConnect, DenseLayer, Execution
from multipath_jax.models.family import IMAGENET, Family
from multipath_jax.models.multipath import MultiPath

# Channels of the convolutions by stage; every stage ends with a 2x2 max-pooling.
STRUCTURES = {
    "VGG13": ((32, 32), (64, 64), (128, 128), (256, 256), (256, 256)),
    "VGG16": ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)),
}
DENSE = 256
# torchvision's convolutions by depth, "A", "B", "D" and "E", to a stage; and how they go on.
TORCHVISION = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
FEATURES = (64, 128, 256, 512, 512)
SIDE, TORCHVISION_DENSE = 7, 4096


def vgg(
    structure: str,
    num_classes: int,
    *,
    paths: int | None = None,
    execution: Execution = "unrolled",
    custom_vjp: bool = True,
    dtype: DTypeLike = jnp.float32,
) -> MultiPath:
    """VGG16, or VGG13 with half the filters and one path or several (Section 7).

    Five stages, then dense layers of 256, 256 and the classes as in Section 7, with which VGG16 has
    the 14.9M parameters of Table 2. As in the plain networks, convolutions have a bias and
    BatchNorm and are initialized as He normal. Height and width of images must be multiples of 32.

    Args:
      structure: a key of `STRUCTURES`.
      num_classes: width of the output.
      paths: X, the number of parallel paths; None: one path without routers. The routers 1 to 7 of
        Section 7 are on the image, after each pooling, and after the first dense layer.
      execution: how parallel paths run, as in `layers.Parallel`.
      custom_vjp: as in `layers.CrossConnect`.
      dtype: type of the computation.

    Returns:
      The network.
    """
    layers = _layers(structure, num_classes, dtype)
    if paths is not None:
        layers = _cross_connected(layers, paths, custom_vjp)
    return MultiPath(tuple(layers), execution)


def vgg_bn(
    num_classes: int,
    *,
    depth: int,
    paths: int | None = None,
    execution: Execution = "unrolled",
    custom_vjp: bool = True,
    dtype: DTypeLike = jnp.float32,
) -> MultiPath:
    """VGG with BatchNorm as torchvision defines it (``vgg16_bn``), with one path or many.

    The last maps are brought to 7x7 pixels whatever the size of the images, and two dense layers of
    4096 without BatchNorm follow. torchvision's dropout between these is left out.

    Args:
      num_classes: width of the output.
      depth: a key of `TORCHVISION`.
      paths: as in `vgg`.
      execution: as in `vgg`.
      custom_vjp: as in `vgg`.
      dtype: of the computation.
    """
    stages = [(width,) * convs for width, convs in zip(FEATURES, TORCHVISION[depth], strict=True)]
    layers = (
        *_stages(stages, dtype),
        DenseLayer(TORCHVISION_DENSE, dtype=dtype, side=SIDE, name="dense_1"),
        DenseLayer(TORCHVISION_DENSE, dtype=dtype, name="dense_2"),
        DenseLayer(num_classes, relu=False, dtype=dtype, name="dense_3"),
    )
    if paths is not None:
        layers = _cross_connected(layers, paths, custom_vjp)
    return MultiPath(tuple(layers), execution)


def _layers(structure, num_classes, dtype) -> Iterator[nn.Module]:
    yield from _stages(STRUCTURES[structure], dtype)
    yield DenseLayer(DENSE, dtype=dtype, norm=True, name="dense_1")
    yield DenseLayer(DENSE, dtype=dtype, norm=True, name="dense_2")
    yield DenseLayer(num_classes, relu=False, dtype=dtype, name="dense_3")


def _stages(stages, dtype) -> Iterator[nn.Module]:
    for number, features in enumerate(stages, start=1):
        yield ConvStage(features, pool=True, dtype=dtype, name=f"stage_{number}")


def _cross_connected(layers, paths, custom_vjp) -> Iterator[nn.Module]:
    """Adds a router before every layer except the last."""
    *layers, dense_3 = layers
    for number, layer in enumerate(layers, start=1):
        yield CrossConnect(paths, custom_vjp=custom_vjp, name=f"router_{number}")
        yield layer
    yield dense_3


_TORCHVISION = rf"VGG(?P<depth>{'|'.join(map(str, TORCHVISION))})-BN"

FAMILIES: tuple[Family, ...] = (
    Family("VGG16", partial(vgg, "VGG16", paths=None), ("VGG16",)),
    Family("VGG13", partial(vgg, "VGG13", paths=None), ("VGG13",), IMAGENET),
    Family(
        r"VGG13-(?P<paths>\d+)-CC",
        partial(vgg, "VGG13"),
        ("VGG13-2-CC",),
        IMAGENET,
        discrete=True,
    ),
    Family(_TORCHVISION, partial(vgg_bn, paths=None), (), IMAGENET),
    Family(rf"{_TORCHVISION}-(?P<paths>\d+)-CC", vgg_bn, (), IMAGENET, discrete=True),
)
