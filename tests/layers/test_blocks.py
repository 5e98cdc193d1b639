"""Basic layers against their definitions."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multipath_jax.layers import ConvNorm, ConvStage, DenseLayer, batch_norm, max_pool_2x2
from multipath_jax.layers.blocks import adaptive_average_pool

X = jax.random.normal(jax.random.key(0), (2, 6, 8, 3))


@pytest.mark.parametrize("x", [X, X[:, :5, :7]])
def test_max_pool_and_its_gradient_are_those_of_the_window_reduction(x):
    def pooled(pool):
        return jax.value_and_grad(lambda x: jnp.sum(jnp.sin(pool(x))))(x)

    (value, gradient), (expected, expected_gradient) = (
        pooled(max_pool_2x2),
        pooled(lambda x: nn.max_pool(x, (2, 2), (2, 2))),
    )
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_array_equal(gradient, expected_gradient)


def test_max_pool_of_rectified_maps_has_the_usual_gradient_through_the_relu():
    def gradient(pool):
        return jax.grad(lambda x: jnp.sum(jnp.sin(pool(nn.relu(x)))))(X - 1)  # mostly ties at zero

    np.testing.assert_array_equal(
        gradient(max_pool_2x2), gradient(lambda x: nn.max_pool(x, (2, 2), (2, 2)))
    )


def test_max_pool_of_maps_too_small_says_so():
    with pytest.raises(ValueError, match=r"\(2, 1, 8, 3\) are too small"):
        max_pool_2x2(X[:, :1])


@pytest.mark.parametrize("side", [1, 2, 3, 4, 9])
def test_adaptive_average_pool_is_of_windows_that_cover_the_maps(side):
    """As in PyTorch, a window includes the pixels that are only partly in it."""
    expected = np.zeros((2, side, side, 3), np.float32)
    for i, j in np.ndindex(side, side):
        rows = slice(math.floor(i * 6 / side), math.ceil((i + 1) * 6 / side))
        columns = slice(math.floor(j * 8 / side), math.ceil((j + 1) * 8 / side))
        expected[:, i, j] = X[:, rows, columns].mean((1, 2))
    np.testing.assert_allclose(adaptive_average_pool(X, side), expected, rtol=1e-5, atol=1e-6)


def test_conv_norm_normalizes_over_the_batch_in_training_and_by_its_statistics_later():
    layer = ConvNorm(5, relu=False)
    variables = layer.init(jax.random.key(1), X)
    y, updates = layer.apply(variables, X, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(y.var((0, 1, 2)), 1, rtol=1e-3)  # epsilon=1e-5, variances ~1
    conv = np.asarray(nn.Conv(5, (3, 3)).apply({"params": variables["params"]["conv"]}, X))
    norm = jax.tree.map(np.asarray, updates["batch_stats"]["norm"])
    np.testing.assert_allclose(norm["mean"], 0.1 * conv.mean((0, 1, 2)), rtol=1e-4, atol=1e-6)
    later = layer.apply({**variables, **updates}, X, train=False)
    expected = (conv - norm["mean"]) / np.sqrt(norm["var"] + 1e-5)
    np.testing.assert_allclose(later, expected, rtol=1e-4, atol=1e-5)


def test_exact_batch_norm_normalizes_what_is_far_from_zero():
    # At a mean of 10^4, the standard deviation of 1 is a thousand units in the last place of
    # float32, but the variance of 1 is less than one unit of the mean square.
    x = 1e4 + jax.random.normal(jax.random.key(0), (4096, 2))

    def deviation(exact):
        norm = batch_norm(True, jnp.float32, exact=exact)
        y, _ = norm.apply(norm.init(jax.random.key(1), x), x, mutable=["batch_stats"])
        return np.std(y, axis=0)

    np.testing.assert_allclose(deviation(exact=True), 1, rtol=1e-3)
    assert (np.abs(deviation(exact=False) - 1) > 0.5).all()  # as documented


def test_conv_stage_halves_only_when_asked():
    for pool, size in ((True, (3, 4)), (False, (6, 8))):
        out, _ = ConvStage((4, 5), pool).init_with_output(jax.random.key(0), X)
        assert out.shape == (2, *size, 5)
        assert (out >= 0).all()


def test_dense_layer_flattens_what_it_gets():
    out, variables = DenseLayer(7, relu=False).init_with_output(jax.random.key(0), X)
    kernel = variables["params"]["dense"]["kernel"]
    np.testing.assert_allclose(out, X.reshape(2, -1) @ kernel, rtol=1e-4, atol=1e-5)


def test_dense_layer_normalizes_what_it_gets():
    layer = DenseLayer(7, relu=False, norm=True)
    out, variables = layer.init_with_output(jax.random.key(0), X, train=False)
    assert set(variables["params"]) == {"dense", "norm"}
    normal, _ = layer.apply(variables, X, train=True, mutable=["batch_stats"])
    assert out.shape == normal.shape == (2, 7)
    np.testing.assert_allclose(normal.mean(0), 0, atol=1e-5)  # float32 rounding
