"""Flax modules: routers (with the functions of `multipath_jax.routing`), paths and other layers."""

from multipath_jax.layers.activity import ActivePaths
from multipath_jax.layers.blocks import ConvNorm, ConvStage, DenseLayer, batch_norm, max_pool_2x2
from multipath_jax.layers.capsule import PrimaryCapsules, RoutedCapsules
from multipath_jax.layers.choice import Choice
from multipath_jax.layers.conditional import (
    ConditionalBlock,
    GumbelGate,
    SkipGate,
    straight_through,
)
from multipath_jax.layers.frozen_statistics import frozen_statistics
from multipath_jax.layers.highway import ConvHighway
from multipath_jax.layers.hyper import HyperConv, KernelGenerator
from multipath_jax.layers.nddr import NDDR, NDDRShortcut
from multipath_jax.layers.own_statistics import FromSets, OwnStatistics
from multipath_jax.layers.paths import Execution, Parallel
from multipath_jax.layers.residual import (
    BasicBlock,
    Bottleneck,
    Conv,
    NormReLU,
    PoolDense,
    PreActivationBlock,
    PreActivationBottleneck,
    ResidualStack,
    ResidualStem,
    Shortcut,
)
from multipath_jax.layers.routers import (
    ConvCrossPredict,
    CrossConnect,
    DenseCrossPredict,
    Gate,
    OneToMany,
    Router,
    Share,
)
from multipath_jax.layers.squeeze import SqueezeExcite
from multipath_jax.layers.stitch import CrossStitch

__all__ = [
    "NDDR",
    "ActivePaths",
    "BasicBlock",
    "Bottleneck",
    "Choice",
    "ConditionalBlock",
    "Conv",
    "ConvCrossPredict",
    "ConvHighway",
    "ConvNorm",
    "ConvStage",
    "CrossConnect",
    "CrossStitch",
    "DenseCrossPredict",
    "DenseLayer",
    "Execution",
    "FromSets",
    "Gate",
    "GumbelGate",
    "HyperConv",
    "KernelGenerator",
    "NDDRShortcut",
    "NormReLU",
    "OneToMany",
    "OwnStatistics",
    "Parallel",
    "PoolDense",
    "PreActivationBlock",
    "PreActivationBottleneck",
    "PrimaryCapsules",
    "ResidualStack",
    "ResidualStem",
    "RoutedCapsules",
    "Router",
    "Share",
    "Shortcut",
    "SkipGate",
    "SqueezeExcite",
    "batch_norm",
    "frozen_statistics",
    "max_pool_2x2",
    "straight_through",
]
