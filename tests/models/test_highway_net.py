"""Tests of HighwayNet: its depth and the initial bias of its gates."""

import jax
import jax.numpy as jnp

import multipath_jax


def shapes(size=32):
    model, images = multipath_jax.create_model("HighwayNet"), jnp.zeros((2, size, size, 3))
    return jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), images))


def test_it_has_nineteen_layers():
    logits, variables = shapes()
    assert logits.shape == (2, 10)
    assert len(variables["params"]) == 19
    assert sum("highway" in name for name in variables["params"]) == 13


def test_gates_start_towards_carrying():
    model = multipath_jax.create_model("HighwayNet", gate_bias=-3.0)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4, 4, 3)))["params"]
    assert (params["stage_1_highway_2"]["gate"]["bias"] == -3).all()
