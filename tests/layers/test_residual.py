"""Residual blocks against compositions of plain operations."""

import itertools
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multipath_jax.layers import (
    BasicBlock,
    Bottleneck,
    PoolDense,
    PreActivationBlock,
    PreActivationBottleneck,
    ResidualStack,
    ResidualStem,
)

X = jax.random.normal(jax.random.key(0), (2, 6, 6, 8))
BLOCKS = (BasicBlock, Bottleneck, PreActivationBlock, PreActivationBottleneck)
CLOSE = {"rtol": 1e-4, "atol": 1e-4}  # float32 sums of a few hundred products, in different orders


def variables_of(module, x=X):
    """Initial variables plus noise, so that no scale is one and no shift or mean is zero."""
    leaves, tree = jax.tree.flatten(jax.jit(module.init)(jax.random.key(1), x))
    keys = jax.random.split(jax.random.key(2), len(leaves))
    noise = [0.2 * jax.random.uniform(key, v.shape) for key, v in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, [v + n for v, n in zip(leaves, noise, strict=True)])


def relu(x):
    return np.maximum(x, 0)


class Definition:
    """The parts of a block in plain operations, with the given variables."""

    def __init__(self, variables):
        self.params, self.statistics = (
            jax.tree.map(np.asarray, variables[kind]) for kind in ("params", "batch_stats")
        )

    def conv(self, name, x, strides=1, groups=1):
        kernel = self.params[name]["conv"]["kernel"]
        pad = kernel.shape[0] // 2
        y = jax.lax.conv_general_dilated(
            x,
            kernel,
            (strides, strides),
            ((pad, pad), (pad, pad)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )
        return np.asarray(y)

    def norm(self, name, x):
        params, statistics = self.params[name]["norm"], self.statistics[name]["norm"]
        x = (np.asarray(x) - statistics["mean"]) / np.sqrt(statistics["var"] + 1e-5)
        return x * params["scale"] + params["bias"]

    def conv_norm(self, name, x, strides=1, groups=1):
        return self.norm(name, self.conv(name, x, strides, groups))


@pytest.mark.parametrize(("features", "strides"), [(8, 1), (12, 1), (8, 2), (12, 2)])
def test_basic_block(features, strides):
    block = BasicBlock(features, strides)
    variables = variables_of(block)
    d = Definition(variables)
    y = d.conv_norm("conv_2", relu(d.conv_norm("conv_1", X, strides)))
    changes = (features, strides) != (8, 1)
    shortcut = d.conv_norm("projection", X, strides) if changes else X
    assert ("projection" in variables["params"]) == changes
    np.testing.assert_allclose(block.apply(variables, X), relu(y + shortcut), **CLOSE)


@pytest.mark.parametrize(("width", "groups"), [(None, 1), (6, 1), (6, 2)])
def test_bottleneck_has_its_strides_and_its_groups_in_the_middle(width, groups):
    block = Bottleneck(16, 2, width=width, groups=groups)
    variables = variables_of(block)
    middle = variables["params"]["conv_2"]["conv"]["kernel"]
    assert middle.shape == (3, 3, (width or 4) // groups, width or 4)
    d = Definition(variables)
    y = relu(d.conv_norm("conv_1", X))
    y = d.conv_norm("conv_3", relu(d.conv_norm("conv_2", y, 2, groups)))
    expected = relu(y + d.conv_norm("projection", X, 2))
    np.testing.assert_allclose(block.apply(variables, X), expected, **CLOSE)


@pytest.mark.parametrize(("features", "strides"), [(8, 1), (12, 2)])
def test_pre_activation_block(features, strides):
    block = PreActivationBlock(features, strides)
    variables = variables_of(block)
    d = Definition(variables)
    a = relu(d.norm("norm_1", X))
    y = d.conv("conv_2", relu(d.norm("norm_2", d.conv("conv_1", a, strides))))
    shortcut = X if strides == 1 else d.conv("projection", a, strides)
    np.testing.assert_allclose(block.apply(variables, X), y + shortcut, **CLOSE)


@pytest.mark.parametrize(("features", "strides"), [(8, 1), (12, 2)])
def test_pre_activation_bottleneck(features, strides):
    block = PreActivationBottleneck(features, strides)
    variables = variables_of(block)
    d = Definition(variables)
    a = relu(d.norm("norm_1", X))
    y = d.conv("conv_2", relu(d.norm("norm_2", d.conv("conv_1", a))), strides)
    y = d.conv("conv_3", relu(d.norm("norm_3", y)))
    shortcut = X if strides == 1 else d.conv("projection", a, strides)
    np.testing.assert_allclose(block.apply(variables, X), y + shortcut, **CLOSE)


@pytest.mark.parametrize("make", BLOCKS)
@pytest.mark.parametrize(("option", "before"), [("identity", 0), ("centered", 2)])
def test_shortcuts_without_parameters_subsample_and_pad_with_zeros(make, option, before):
    blocks = [make(12, 2, shortcut=shortcut) for shortcut in ("projection", option)]
    variables = variables_of(blocks[0])
    assert "projection" in variables["params"]
    without = variables_of(blocks[1])
    assert "projection" not in without["params"]
    # With all parameters set to zero, only the shortcut remains.
    without["params"] = jax.tree.map(jnp.zeros_like, without["params"])
    expected = np.zeros((2, 3, 3, 12), np.float32)
    expected[..., before : before + 8] = X[:, ::2, ::2]
    if make in (BasicBlock, Bottleneck):
        expected = relu(expected)
    np.testing.assert_array_equal(blocks[1].apply(without, X), expected)


@pytest.mark.parametrize("make", BLOCKS)
def test_squeeze_and_excitation_rescales_the_residual_alone(make):
    block = make(8, se_ratio=4)
    variables = variables_of(block)
    squeeze = variables["params"]["squeeze_excite"]["squeeze"]
    assert squeeze["kernel"].shape == (8, 2)
    # The sigmoid of -1000 is zero: only the shortcut remains.
    variables["params"]["squeeze_excite"]["excite"]["bias"] -= 1000
    expected = relu(X) if make in (BasicBlock, Bottleneck) else X
    np.testing.assert_array_equal(block.apply(variables, X), expected)


@pytest.mark.parametrize("make", [BasicBlock, Bottleneck])
def test_zero_init_starts_as_the_identity_and_still_learns(make):
    x = nn.relu(X)  # blocks end with a ReLU, so inputs are not negative
    block = make(8, zero_init=True)
    variables = block.init(jax.random.key(0), x)
    for train in (False, True):
        y, _ = block.apply(variables, x, train=train, mutable=["batch_stats"])
        np.testing.assert_array_equal(y, x)

    def loss(params):
        y, _ = block.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
        return jnp.sum(jnp.sin(y))

    last = max(name for name in variables["params"] if name.startswith("conv"))
    assert jnp.abs(jax.grad(loss)(variables["params"])[last]["norm"]["scale"]).max() > 1e-3
    plain = make(8)
    assert not np.allclose(plain.apply(plain.init(jax.random.key(0), x), x), x)


@pytest.mark.parametrize("make", BLOCKS)
def test_kernels_start_as_he_normal_over_the_outputs(make):
    x = jnp.zeros((1, 2, 2, 64))
    params = jax.jit(make(256, 2).init)(jax.random.key(0), x)["params"]
    kernels = [p["conv"]["kernel"] for p in params.values() if "conv" in p]
    assert len(kernels) >= 3
    for kernel in kernels:
        height, width, _, outputs = kernel.shape
        # The smallest kernel has 4096 weights: the error of the standard deviation is about 1 %.
        assert kernel.std() == pytest.approx(np.sqrt(2 / (height * width * outputs)), rel=0.05)


def test_only_the_first_block_of_a_stack_has_the_strides():
    stack = ResidualStack(partial(BasicBlock, 12), blocks=3, strides=2)
    y, variables = stack.init_with_output(jax.random.key(0), X)
    assert y.shape == (2, 3, 3, 12)
    assert list(variables["params"]) == ["block_1", "block_2", "block_3"]
    assert ["projection" in block for block in variables["params"].values()] == [True, False, False]
    expected = X
    for number, strides in ((1, 2), (2, 1), (3, 1)):
        own = {key: value[f"block_{number}"] for key, value in variables.items()}
        expected = BasicBlock(12, strides).apply(own, expected)
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("size", [8, 9])
def test_the_imagenet_stem_pads_its_pooling_on_both_sides(size):
    """As in torchvision; the padding ``"SAME"`` pads even sizes only at the end."""
    x = jax.random.normal(jax.random.key(3), (2, size, size, 3))
    stem = ResidualStem(5, kernel=7, downsample=True)
    variables = variables_of(stem, x)
    maps = relu(Definition(variables).conv_norm("conv", x, 2))
    halved = (maps.shape[1] + 1) // 2
    expected = np.zeros((2, halved, halved, 5))
    for row, column in itertools.product(range(halved), repeat=2):
        rows, columns = (slice(max(2 * i - 1, 0), 2 * i + 2) for i in (row, column))
        expected[:, row, column] = maps[:, rows, columns].max((1, 2))
    np.testing.assert_allclose(stem.apply(variables, x), expected, **CLOSE)


def test_pool_dense_is_a_dense_layer_of_the_means():
    head = PoolDense(5)
    variables = variables_of(head)
    dense = jax.tree.map(np.asarray, variables["params"]["dense"])
    expected = np.asarray(X).mean((1, 2)) @ dense["kernel"] + dense["bias"]
    np.testing.assert_allclose(head.apply(variables, X), expected, **CLOSE)


@pytest.mark.parametrize("make", BLOCKS)
def test_bfloat16_stays_bfloat16(make):
    block = make(12, 2, se_ratio=4, dtype=jnp.bfloat16)
    with jax.numpy_dtype_promotion("standard"):  # Flax's BatchNorm mixes dtypes
        y, variables = jax.eval_shape(lambda: block.init_with_output(jax.random.key(0), X))
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
