"""Highway layers against their definition."""

import jax
import numpy as np

from multipath_jax.layers import ConvHighway

X = jax.random.normal(jax.random.key(0), (2, 4, 5, 3))


def conv(x, kernel, bias):
    """A convolution that keeps the size, as a sum over the taps of the kernel."""
    k, (_, h, w, _) = len(kernel), x.shape
    padded = np.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2), (0, 0)))
    taps = (padded[:, i : i + h, j : j + w] @ kernel[i, j] for i, j in np.ndindex(k, k))
    return sum(taps) + bias


def test_the_gate_mixes_the_transform_and_the_input():
    layer = ConvHighway()
    variables = layer.init(jax.random.key(1), X)
    params, x = jax.tree.map(np.asarray, variables["params"]), np.asarray(X)
    h = np.maximum(conv(x, **params["transform"]), 0)
    t = 1 / (1 + np.exp(-conv(x, **params["gate"])))
    expected = t * h + (1 - t) * x
    np.testing.assert_allclose(layer.apply(variables, X), expected, rtol=1e-4, atol=1e-5)


def test_with_a_very_negative_bias_the_layer_carries_its_input():
    layer = ConvHighway(gate_bias=-100.0)
    y, variables = layer.init_with_output(jax.random.key(1), X)
    np.testing.assert_array_equal(variables["params"]["gate"]["bias"], -100)
    np.testing.assert_allclose(y, X, rtol=1e-6)
