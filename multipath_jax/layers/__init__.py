"""Flax modules over `multipath_jax.routing`: routers, parallel paths, ordinary layers."""

from multipath_jax.layers.blocks import ConvNorm, ConvStage, DenseLayer
from multipath_jax.layers.paths import Execution, Parallel
from multipath_jax.layers.routers import (
    ConvCrossPredict,
    CrossConnect,
    DenseCrossPredict,
    Gate,
    OneToMany,
    Router,
    Share,
)

__all__ = [
    "ConvCrossPredict",
    "ConvNorm",
    "ConvStage",
    "CrossConnect",
    "DenseCrossPredict",
    "DenseLayer",
    "Execution",
    "Gate",
    "OneToMany",
    "Parallel",
    "Router",
    "Share",
]
