"""A network with two routers and two paths, and images of 8x8 pixels, for the tests of figures."""

import copy
import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from multipath_jax.data import normalize
from multipath_jax.layers import (
    ConvCrossPredict,
    ConvStage,
    CrossConnect,
    DenseLayer,
    ResidualStem,
)
from multipath_jax.models.multipath import MultiPath

CLASSES = ("ant", "bee", "cat")
MEAN, STD = np.float32([0.4, 0.5]), np.float32([0.2, 0.3])


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained network, as `multipath_jax.gates.Trained` requires."""

    model: nn.Module
    variables: PyTree

    def prepare(self, images):
        channels = images.shape[-1]
        return normalize(jnp.asarray(images), MEAN[:channels], STD[:channels])


def images(count=11, seed=0):
    """Random images of different brightness, so that the gates differ between them."""
    rng = np.random.default_rng(seed)
    low = rng.integers(0, 200, (count, 1, 1, 2))
    return (low + rng.integers(0, 56, (count, 8, 8, 2))).astype(np.uint8)


def labels(count=11):
    return (np.arange(count) % len(CLASSES)).astype(np.int32)


def network(kind="CC", paths=2, seed=0, gain=8.0, channels=2):
    """A network with two routers. ``gain`` scales the gates' last kernels, which start small."""
    trained = copy.deepcopy(_fresh(kind, paths, seed, channels))
    for name in ("router_1", "router_2"):
        trained.variables["params"][name]["gate"]["w2"] *= gain
    return trained


@functools.cache
def _fresh(kind, paths, seed, channels):
    layers = (
        ResidualStem(4, name="stem"),
        CrossConnect(paths, name="router_1"),
        ConvStage((4,), pool=True, name="stage_1"),
        CrossConnect(paths, name="router_2")
        if kind == "CC"
        else ConvCrossPredict(paths, features=5, name="router_2"),
        DenseLayer(len(CLASSES), relu=False, name="dense_1"),
    )
    return initialized(MultiPath(layers), channels, seed)


def initialized(model, channels, seed=0):
    """The untrained network, with its variables as writable NumPy arrays."""
    images = jnp.zeros((1, 8, 8, channels))
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(seed), images)
    kept = {key: tree for key, tree in variables.items() if key != "intermediates"}
    return Trained(model, jax.tree.map(np.array, kept))


def without_routers(channels=2):
    """A network of one convolutional stage and a dense layer."""
    model = MultiPath((ConvStage((4,), name="stage_1"), DenseLayer(3, relu=False, name="dense_1")))
    return initialized(model, channels)
