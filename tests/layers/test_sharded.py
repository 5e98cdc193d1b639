"""Layers on two devices, with half of the batch each, compute the same as on one device.

The layers run inside `jax.shard_map`, with its check of varying values (``check_vma``), and on a
mesh with explicit axes, where they must work like the functions of JAX.
"""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from multipath_jax import layers
from multipath_jax.layers import sharding

PATHS, BATCH = 2, 4
KEY = jax.random.key(0)
MAPS = jax.random.normal(jax.random.key(1), (PATHS, BATCH, 4, 4, 4))
VECTORS = MAPS[:, :, 0, 0]
BLOCK = partial(layers.PreActivationBlock, 4)

CASES = {
    "CrossConnect": (layers.CrossConnect(2), MAPS),
    "CrossConnect, autodiff": (layers.CrossConnect(2, custom_vjp=False), MAPS),
    "OneToMany": (layers.OneToMany(2), MAPS[0]),
    "Share": (layers.Share(2), MAPS),
    "ConvCrossPredict": (layers.ConvCrossPredict(2, features=3), MAPS),
    "DenseCrossPredict": (layers.DenseCrossPredict(2, features=3), VECTORS),
    "CrossStitch": (layers.CrossStitch(2), MAPS),
    "NDDR": (layers.NDDR(2, features=3), MAPS),
    "NDDRShortcut": (
        layers.NDDRShortcut(
            2,
            layers=(
                layers.Share(2),
                layers.ConvStage((3,), pool=True),
                layers.ConvStage((3,), pool=True),
            ),
        ),
        MAPS[:1],
    ),
    "NormReLU": (layers.NormReLU(), MAPS[0]),
    "Parallel": (layers.Parallel(layers.ResidualStack(BLOCK, 1)), MAPS),
    "ConvStage": (layers.ConvStage((3,), pool=True, squeeze=True), MAPS[0]),
    "DenseLayer": (layers.DenseLayer(3, norm=True), MAPS[0]),
    "Bottleneck": (layers.Bottleneck(8, strides=2), MAPS[0]),
    "ResidualStem": (layers.ResidualStem(4, downsample=True), MAPS[0]),
    "PoolDense": (layers.PoolDense(3), MAPS[0]),
    "ConvHighway": (layers.ConvHighway(), MAPS[0]),
    "HyperConv": (layers.HyperConv(4, layers.KernelGenerator(channels=2, hidden=3)), MAPS[0]),
    "PrimaryCapsules": (layers.PrimaryCapsules(2, 2, kernel=3), MAPS[0]),
    "RoutedCapsules": (layers.RoutedCapsules(2, size=3), MAPS[0, :, 0]),
    "ConditionalBlock": (layers.ConditionalBlock(4, gate=layers.SkipGate), MAPS[0]),
}
slow = partial(pytest.param, marks=pytest.mark.slow)
cases = pytest.mark.parametrize(("layer", "x"), CASES.values(), ids=CASES)


def batch_spec(x):
    """The spec that shards an array ``[m b ...]`` or ``[b ...]`` over the batch."""
    axes = [size == BATCH and axis < 2 for axis, size in enumerate(x.shape)].index(True)
    return PartitionSpec(*[None] * axes, "data")


def call(layer, variables, x):
    train = {"train": True} if "train" in inspect.signature(layer.__call__).parameters else {}
    return layer.apply(variables, x, mutable=["batch_stats"], **train)


def run(layer, variables, x):
    """Returns outputs, statistics, and the gradients of a loss that is a sum over the examples."""

    def loss(params, x):
        y, updates = call(layer, {**variables, "params": params}, x)
        return jnp.sum(jnp.sin(y)), (y, updates)

    gradients, found = jax.grad(loss, (0, 1), has_aux=True)(variables.get("params", {}), x)
    return found, gradients


def in_a_shard_map(how, layer, variables, x):
    (y, _), _ = jax.eval_shape(partial(run, layer), variables, x)
    out = ((batch_spec(y), PartitionSpec()), (PartitionSpec(), batch_spec(x)))

    def local(variables, x):
        with sharding.over_devices("data", None):
            return run(layer, variables, x)

    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    where = (PartitionSpec(), batch_spec(x))
    return how(jax.shard_map(local, mesh=mesh, in_specs=where, out_specs=out), variables, x)


def on_explicit_axes(how, layer, variables, x):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,))
    where = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, batch_spec(x))
    with jax.set_mesh(mesh):
        return how(partial(run, layer), *jax.device_put((variables, x), where))


@cases
def test_every_layer_may_be_there(layer, x):
    """JAX checks how arrays vary or are sharded without computing them."""
    variables = layer.init(KEY, x)
    shapes = jax.tree.map(jnp.shape, jax.eval_shape(partial(run, layer), variables, x))
    for place in (in_a_shard_map, on_explicit_axes):
        found = place(jax.eval_shape, layer, variables, x)
        assert jax.tree.map(jnp.shape, found) == shapes


@pytest.mark.parametrize("place", [in_a_shard_map, on_explicit_axes])
@pytest.mark.parametrize(
    "name",
    [name if name in ("CrossConnect", "NormReLU", "NDDR") else slow(name) for name in CASES],
)
def test_two_devices_compute_what_one_does(name, place):
    layer, x = CASES[name]
    variables = layer.init(KEY, x)

    def compute(function, *arguments):
        return jax.jit(function)(*arguments)

    jax.tree.map(
        # Different order of float32 sums.
        partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
        place(compute, layer, variables, x),
        compute(partial(run, layer), variables, x),
    )
