"""BaseCNN, WideCNN and DeepCNN, and their multi-path forms (Section 6.2, Table 1)."""

from collections.abc import Iterator
from functools import partial
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from multipath_jax.layers import (
    ConvCrossPredict,
    ConvStage,
    CrossConnect,
    DenseCrossPredict,
    DenseLayer,
    Execution,
    Share,
)
from multipath_jax.models.family import Family
from multipath_jax.models.multipath import MultiPath

Routing = Literal["none", "CC", "CP"]

# Channels of Table 1's convolutions by stage. Every stage except the last ends with a 2x2
# max-pooling; dense layers of 32, 32 and the classes follow.
STRUCTURES = {
    "BaseCNN": ((32, 32), (64, 64), (128, 128)),
    "WideCNN": ((64, 64), (128, 128), (256, 256)),
    "DeepCNN": ((32, 32), (64, 64), (128, 128, 128), (256, 256, 256)),
}


def plain_cnn(
    structure: str,
    num_classes: int,
    *,
    paths: int | None = None,
    routing: Routing = "none",
    execution: Execution = "unrolled",
    custom_vjp: bool = True,
    dtype: DTypeLike = jnp.float32,
) -> MultiPath:
    """One of Table 1's networks, with one path or several.

    Args:
      structure: a key of `STRUCTURES`.
      num_classes: width of the output.
      paths: X, the number of parallel paths; None: one path without routers.
      routing: ``"none"`` (BaseCNN-X: the paths share input and output only), ``"CC"``
        (cross-connections after the stages and the first dense layer, Fig. 4) or ``"CP"``
        (cross-predictions in place of each stage's first convolution and the second dense
        layer, Fig. 2).
      execution: how parallel paths run, as in `layers.Parallel`.
      custom_vjp: as in `layers.CrossConnect`.
      dtype: type of the computation.

    Returns:
      The network.
    """
    if paths is None:
        layers = _stages(structure, num_classes, dtype)
    elif routing == "none":
        layers = (Share(paths, name="share"), *_stages(structure, num_classes, dtype))
    elif routing == "CC":
        layers = _cross_connected(structure, num_classes, paths, custom_vjp, dtype)
    else:
        layers = _cross_predicted(structure, num_classes, paths, execution, dtype)
    return MultiPath(tuple(layers), execution)


def _conv_stages(structure, dtype, skip=0) -> Iterator[nn.Module]:
    """The convolutional stages, each without its first ``skip`` convolutions."""
    stages = STRUCTURES[structure]
    for number, features in enumerate(stages, start=1):
        pool = number < len(stages)
        yield ConvStage(features[skip:], pool, dtype, name=f"stage_{number}")


def _dense_layers(num_classes, dtype) -> tuple[nn.Module, ...]:
    return (
        # With BatchNorm, like the convolutions: without it, at the learning rate of 0.1, all units
        # of the first layer, which has 8,192 inputs, die within twenty steps.
        DenseLayer(32, dtype=dtype, norm=True, name="dense_1"),
        DenseLayer(32, dtype=dtype, norm=True, name="dense_2"),
        DenseLayer(num_classes, relu=False, dtype=dtype, name="dense_3"),
    )


def _stages(structure, num_classes, dtype) -> tuple[nn.Module, ...]:
    return (*_conv_stages(structure, dtype), *_dense_layers(num_classes, dtype))


def _cross_connected(structure, num_classes, paths, custom_vjp, dtype) -> Iterator[nn.Module]:
    """BaseCNN-X-CC: a router on the image, after every stage and after the first dense layer."""
    *stages, dense_2, dense_3 = _stages(structure, num_classes, dtype)
    for number, stage in enumerate(stages, start=1):
        yield CrossConnect(paths, custom_vjp=custom_vjp, name=f"router_{number}")
        yield stage
    yield CrossConnect(paths, custom_vjp=custom_vjp, name=f"router_{len(stages) + 1}")
    yield from (dense_2, dense_3)


def _cross_predicted(structure, num_classes, paths, execution, dtype) -> Iterator[nn.Module]:
    """BaseCNN-X-CP: routers replace the first convolution of each stage and the dense layer 2."""
    options = {"execution": execution, "dtype": dtype}
    for number, stage in enumerate(_conv_stages(structure, dtype, skip=1), start=1):
        features = STRUCTURES[structure][number - 1][0]
        yield ConvCrossPredict(paths, features=features, name=f"router_{number}", **options)
        yield stage
    dense_1, _, dense_3 = _dense_layers(num_classes, dtype)
    yield dense_1
    yield DenseCrossPredict(paths, features=32, name=f"router_{number + 1}", **options)
    yield dense_3


def _families(structure: str) -> tuple[Family, ...]:
    build = partial(plain_cnn, structure)
    base = structure == "BaseCNN"
    routed = tuple(f"BaseCNN-{x}-{{}}" for x in (2, 3, 4)) if base else ()
    return (
        Family(structure, build, (structure,)),
        Family(rf"{structure}-(?P<paths>\d+)", build, ("BaseCNN-3",) if base else ()),
        *(
            Family(
                rf"{structure}-(?P<paths>\d+)-{routing}",
                partial(build, routing=routing),
                tuple(name.format(routing) for name in routed),
                discrete=routing == "CC",
            )
            for routing in ("CP", "CC")
        ),
    )


FAMILIES: tuple[Family, ...] = tuple(
    family for structure in STRUCTURES for family in _families(structure)
)
