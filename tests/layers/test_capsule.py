"""Capsules against NumPy loops over the definitions of Sabour et al. (2017)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multipath_jax.layers import PrimaryCapsules, RoutedCapsules
from multipath_jax.layers.capsule import length, route_by_agreement, squash


def squash_one(s):
    """Eq. 1 for one capsule."""
    norm = np.linalg.norm(s)
    return norm**2 / (1 + norm**2) * s / norm


def route(predictions, iterations):
    """Procedure 1 for the predictions of one example, ``[i j d]``."""
    lower, upper, _ = predictions.shape
    logits = np.zeros((lower, upper))
    for _ in range(iterations):
        coupling = np.array([np.exp(row) / np.exp(row).sum() for row in logits])
        v = []
        for j in range(upper):
            s = sum(coupling[i, j] * predictions[i, j] for i in range(lower))
            v.append(squash_one(s))
        for i, j in np.ndindex(lower, upper):
            logits[i, j] += predictions[i, j] @ v[j]
    return np.array(v)


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_squash_keeps_directions_and_brings_lengths_below_one(scale):
    s = scale * np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    expected = np.array([[squash_one(row) for row in rows] for rows in s])
    np.testing.assert_allclose(squash(jnp.asarray(s)), expected, rtol=1e-3)
    np.testing.assert_allclose(
        length(squash(jnp.asarray(s))), np.linalg.norm(expected, axis=-1), rtol=1e-2, atol=1e-3
    )


def test_a_capsule_of_zeros_has_a_finite_gradient():
    gradient = jax.grad(lambda s: length(squash(s)).sum())(jnp.zeros((2, 4)))
    assert jnp.isfinite(gradient).all()


@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_routing_by_agreement(iterations):
    predictions = np.random.default_rng(0).normal(size=(2, 5, 3, 4)).astype(np.float32)
    expected = np.stack([route(p.astype(np.float64), iterations) for p in predictions])
    actual = route_by_agreement(jnp.asarray(predictions), iterations)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


def test_routed_capsules_predict_by_one_matrix_a_pair():
    us = jax.random.normal(jax.random.key(0), (2, 5, 3))
    layer = RoutedCapsules(count=4, size=6, iterations=2)
    variables = layer.init(jax.random.key(1), us)
    matrices = np.asarray(variables["params"]["matrices"], np.float64)
    assert matrices.shape == (5, 4, 3, 6)
    for example, actual in zip(us, layer.apply(variables, us), strict=True):
        predictions = np.zeros((5, 4, 6))
        for i, j in np.ndindex(5, 4):
            predictions[i, j] = np.asarray(example[i]) @ matrices[i, j]
        np.testing.assert_allclose(actual, route(predictions, 2), rtol=1e-4, atol=1e-6)


def test_primary_capsules_are_the_channels_of_a_pixel():
    x = jax.random.normal(jax.random.key(0), (2, 9, 9, 3))
    layer = PrimaryCapsules(types=2, size=4, kernel=5)
    variables = layer.init(jax.random.key(1), x)
    kernel, bias = (np.asarray(variables["params"]["conv"][k]) for k in ("kernel", "bias"))
    actual = layer.apply(variables, x)
    assert actual.shape == (2, 3 * 3 * 2, 4)
    window = np.asarray(x)[1, 2:7, 4:9]  # of the output pixel at row 1, column 2
    capsules = (np.einsum("hwc,hwcf->f", window, kernel) + bias).reshape(2, 4)
    at = (1 * 3 + 2) * 2
    expected = [squash_one(capsule) for capsule in capsules]
    np.testing.assert_allclose(actual[1, at : at + 2], expected, rtol=1e-4)
