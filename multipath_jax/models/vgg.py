"""VGG networks: VGG16 for CIFAR (Table 2), the network that Section 7 looks into, torchvision's."""

from collections.abc import Iterator
from functools import partial
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from multipath_jax.layers import ConvStage, CrossConnect, DenseLayer, Execution, Share
from multipath_jax.models.family import CIFAR, IMAGENET, Family
from multipath_jax.models.multipath import MultiPath

Routing = Literal["none", "CC"]

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
    routing: Routing = "none",
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
      paths: X, the number of parallel paths; None: one path without routers.
      routing: ``"CC"``: the routers 1 to 7 of Section 7, on the image, after each pooling, and
        after the first dense layer; ``"none"``: the paths share input and output only (not in the
        paper).
      execution: how parallel paths run, as in `layers.Parallel`.
      custom_vjp: as in `layers.CrossConnect`.
      dtype: type of the computation.

    Returns:
      The network.
    """
    layers = _layers(structure, num_classes, dtype)
    return MultiPath(_in_paths(layers, paths, routing, custom_vjp), execution)


def vgg_bn(
    num_classes: int,
    *,
    depth: int,
    paths: int | None = None,
    routing: Routing = "none",
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
      routing: as in `vgg`.
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
    return MultiPath(_in_paths(layers, paths, routing, custom_vjp), execution)


def _layers(structure, num_classes, dtype) -> Iterator[nn.Module]:
    yield from _stages(STRUCTURES[structure], dtype)
    yield DenseLayer(DENSE, dtype=dtype, norm=True, name="dense_1")
    yield DenseLayer(DENSE, dtype=dtype, norm=True, name="dense_2")
    yield DenseLayer(num_classes, relu=False, dtype=dtype, name="dense_3")


def _stages(stages, dtype) -> Iterator[nn.Module]:
    for number, features in enumerate(stages, start=1):
        yield ConvStage(features, pool=True, dtype=dtype, name=f"stage_{number}")


def _in_paths(layers, paths, routing, custom_vjp) -> tuple[nn.Module, ...]:
    if routing == "CC":
        return tuple(_cross_connected(layers, paths, custom_vjp))
    return tuple(layers) if paths is None else (Share(paths, name="share"), *layers)


def _cross_connected(layers, paths, custom_vjp) -> Iterator[nn.Module]:
    """Adds a router before every layer except the last."""
    *layers, dense_3 = layers
    for number, layer in enumerate(layers, start=1):
        yield CrossConnect(paths, custom_vjp=custom_vjp, name=f"router_{number}")
        yield layer
    yield dense_3


def _families(name, build, single, routed, image_shape=IMAGENET) -> tuple[Family, ...]:
    """A network with one path, with several, and with routers; and the names of the paper's."""
    paths = rf"{name}-(?P<paths>\d+)"
    return (
        Family(name, partial(build, paths=None, routing="none"), single, image_shape),
        Family(paths, partial(build, routing="none"), (), image_shape),
        Family(rf"{paths}-CC", partial(build, routing="CC"), routed, image_shape, discrete=True),
    )


_TORCHVISION = rf"VGG(?P<depth>{'|'.join(map(str, TORCHVISION))})-BN"

FAMILIES: tuple[Family, ...] = (
    *_families("VGG16", partial(vgg, "VGG16"), ("VGG16",), (), CIFAR),
    *_families("VGG13", partial(vgg, "VGG13"), ("VGG13",), ("VGG13-2-CC",)),
    *_families(_TORCHVISION, vgg_bn, (), ()),
)
