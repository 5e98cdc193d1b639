"""Baselines that the paper builds on its plain networks (Section 6.2).

Each is one of the plain networks with one kind of layer replaced.
"""

from collections.abc import Iterator
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from multipath_jax.layers import (
    NDDR,
    ConvNorm,
    ConvStage,
    CrossConnect,
    CrossStitch,
    Execution,
    NDDRShortcut,
    Router,
    Share,
)
from multipath_jax.models.family import Family
from multipath_jax.models.multipath import MultiPath
from multipath_jax.models.plain import STRUCTURES, plain_cnn


def squeeze_excite_cnn(
    structure: str, num_classes: int, *, dtype: DTypeLike = jnp.float32
) -> MultiPath:
    """SEBaseCNN and SEDeepCNN: Squeeze-and-Excitation (r = 16) after every convolution.

    Args:
      structure: a key of `STRUCTURES`.
      num_classes: width of the output.
      dtype: type of the computation.
    """
    layers = plain_cnn(structure, num_classes, dtype=dtype).layers
    return MultiPath(
        tuple(
            layer.clone(squeeze=True) if isinstance(layer, ConvStage) else layer for layer in layers
        )
    )


def cross_stitch_cnn(
    num_classes: int,
    *,
    paths: int,
    execution: Execution = "unrolled",
    dtype: DTypeLike = jnp.float32,
) -> MultiPath:
    """Cr-StitchX: BaseCNN-X-CC with cross-stitch units in place of the cross-connections.

    Args:
      num_classes: width of the output.
      paths: X, the number of parallel paths.
      execution: how parallel paths run, as in `layers.Parallel`.
      dtype: type of the computation.
    """
    layers = plain_cnn("BaseCNN", num_classes, paths=paths, routing="CC", dtype=dtype).layers
    stitched = (
        CrossStitch(paths, name=layer.name.replace("router", "stitch"))
        if isinstance(layer, CrossConnect)
        else layer
        for layer in layers
    )
    return MultiPath(tuple(stitched), execution)


def nddr_cnn(
    num_classes: int,
    *,
    paths: int,
    shortcut: bool = False,
    execution: Execution = "unrolled",
    dtype: DTypeLike = jnp.float32,
) -> MultiPath:
    """NDDR-CNNX: BaseCNN-X-CP with NDDR layers in place of the cross-predictions.

    The first convolution has a single input and nothing to fuse, so each path has its own.

    Args:
      num_classes: width of the output.
      paths: X, the number of parallel paths.
      shortcut: whether to add shortcuts from all stages, as in `layers.NDDRShortcut`.
      execution: how parallel paths run, as in `layers.Parallel`.
      dtype: type of the computation.
    """
    layers = tuple(_fused(num_classes, paths, dtype))
    if shortcut:
        last = max(at for at, layer in enumerate(layers) if isinstance(layer, ConvStage))
        convolutional, dense = layers[: last + 1], layers[last + 1 :]
        merged = NDDRShortcut(
            paths, layers=convolutional, execution=execution, dtype=dtype, name="convolutional"
        )
        layers = (merged, *dense)
    return MultiPath(layers, execution)


def _fused(num_classes, paths, dtype) -> Iterator[nn.Module]:
    first, *layers = plain_cnn(
        "BaseCNN", num_classes, paths=paths, routing="CP", dtype=dtype
    ).layers
    yield Share(paths, name="share")
    yield ConvNorm(first.features, dtype=dtype, name="conv_1")
    for layer in layers:
        if isinstance(layer, Router):
            name = layer.name.replace("router", "nddr")
            yield NDDR(paths, features=layer.features, dtype=dtype, name=name)
        else:
            yield layer


FAMILIES: tuple[Family, ...] = (
    *(
        Family(
            f"SE{structure}",
            partial(squeeze_excite_cnn, structure),
            () if structure == "WideCNN" else (f"SE{structure}",),  # the paper has no SEWideCNN
        )
        for structure in STRUCTURES
    ),
    Family(r"Cr-Stitch(?P<paths>\d+)", cross_stitch_cnn, ("Cr-Stitch2",)),
    Family(r"NDDR-CNN(?P<paths>\d+)", partial(nddr_cnn, shortcut=False), ("NDDR-CNN2",)),
    Family(
        r"NDDR-CNN(?P<paths>\d+)-shortcut",
        partial(nddr_cnn, shortcut=True),
        ("NDDR-CNN2-shortcut",),
    ),
)
