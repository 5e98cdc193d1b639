"""Tests of CapsNet: its shapes, its output and its two losses."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import multipath_jax
from multipath_jax.models.capsnet import margin_loss

IMAGES = jax.random.normal(jax.random.key(1), (2, 18, 18, 1))
LABELS = jnp.array([2, 0])


@pytest.fixture(scope="module")
def network():
    model = multipath_jax.create_model("CapsNet", num_classes=3)
    return model, {"params": jax.jit(model.init)(jax.random.key(0), IMAGES)["params"]}


def shapes(shape):
    model = multipath_jax.create_model("CapsNet")
    return jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), jnp.zeros(shape)))


def test_cifar_images_do_as_well():
    logits, variables = shapes((2, 32, 32, 3))
    assert logits.shape == (2, 10)
    assert variables["params"]["classes"]["matrices"].shape == (8 * 8 * 32, 10, 8, 16)
    assert variables["params"]["decoder_3"]["kernel"].shape == (1024, 32 * 32 * 3)


def test_the_margin_loss():
    lengths = np.array([[0.95, 0.3, 0.05], [0.2, 0.5, 0.7]])
    expected = []
    for row, label in zip(lengths, (0, 1), strict=True):
        terms = [
            max(0, 0.9 - v) ** 2 if k == label else 0.5 * max(0, v - 0.1) ** 2
            for k, v in enumerate(row)
        ]
        expected.append(sum(terms))
    actual = margin_loss(jnp.asarray(lengths, jnp.float32), jnp.array([0, 1]))
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_the_loss_is_that_of_margin_and_decoder(network):
    model, variables = network
    apply = partial(model.apply, method="loss", train=True, mutable=["intermediates"])
    (lengths, losses), recorded = jax.jit(apply)(variables, IMAGES, LABELS)
    np.testing.assert_array_equal(lengths, model.apply(variables, IMAGES))
    assert ((lengths >= 0) & (lengths < 1)).all()
    drawn = recorded["intermediates"]["reconstruction"][0]
    errors = np.array([np.sum((drawn[b] - IMAGES[b]) ** 2) for b in range(2)])
    np.testing.assert_allclose(losses, margin_loss(lengths, LABELS) + 0.0005 * errors, rtol=1e-5)


def test_the_decoder_sees_the_capsule_of_the_label_only(network):
    model, variables = network

    @jax.jit
    def drawn(labels):
        _, recorded = model.apply(
            variables, IMAGES, labels, method="loss", mutable=["intermediates"]
        )
        return recorded["intermediates"]["reconstruction"][0]

    own = drawn(LABELS)
    other = drawn(jnp.array([2, 1]))
    np.testing.assert_array_equal(own[0], other[0])
    assert not np.allclose(own[1], other[1])
