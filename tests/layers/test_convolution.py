"""`convolve`, the convolution of the blocks, against the convolution of XLA."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from multipath_jax.layers.convolution import convolve

X = jax.random.normal(jax.random.key(0), (2, 6, 8, 3))
KERNEL = jax.random.normal(jax.random.key(1), (3, 3, 3, 4))
AS_LINEN = {"padding": "SAME", "dimension_numbers": ("NHWC", "HWIO", "NHWC")}


def loss(conv, x, kernel):
    return jnp.sum(jnp.sin(partial(conv, window_strides=(1, 1), **AS_LINEN)(x, kernel)))


def gradients(conv):
    return jax.value_and_grad(partial(loss, conv), (0, 1))


@pytest.mark.parametrize("how", [lambda f: f, jax.jit], ids=["eager", "compiled"])
def test_values_and_derivatives_are_those_of_xla(how):
    jax.tree.map(
        np.testing.assert_array_equal,
        how(gradients(convolve))(X, KERNEL),
        how(gradients(lax.conv_general_dilated))(X, KERNEL),
    )


def test_forward_mode_and_second_derivatives():
    def product(conv):
        return jax.jvp(jax.grad(partial(loss, conv), (0, 1)), (X, KERNEL), (X, KERNEL))

    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-4),  # different order of sums
        product(convolve),
        product(lax.conv_general_dilated),
    )


def test_of_many_inputs_at_once():
    many = jnp.stack([X, 2 * X])
    np.testing.assert_array_equal(
        jax.vmap(gradients(convolve), (0, None))(many, KERNEL)[1][0],
        jax.vmap(gradients(lax.conv_general_dilated), (0, None))(many, KERNEL)[1][0],
    )


def programs(platform):
    """Yields the lowered programs of the loss, and of the loss with its gradients, as text."""
    for function in (partial(loss, convolve), gradients(convolve)):
        traced = jax.jit(function).trace(X, KERNEL)
        yield traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize(("platform", "in_training"), [("cpu", True), ("tpu", False)])
def test_the_input_is_copied_on_cpus_and_in_training_alone(platform, in_training):
    value, with_gradients = programs(platform)
    assert "dynamic_update_slice" not in value
    assert ("dynamic_update_slice" in with_gradients) == in_training


def test_xla_keeps_the_copy():
    compiled = jax.jit(gradients(convolve)).lower(X, KERNEL).compile().as_text()
    assert "dynamic-update-slice" in compiled
