"""Tests of the networks that Section 6.2 compares with: sizes, layers, relation to routing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from weights import random_like

import multipath_jax

SMALL = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))


def shapes(name, size=32):
    model = multipath_jax.create_model(name)
    images = jnp.zeros((1, size, size, 3))
    return jax.eval_shape(lambda: model.init(jax.random.key(0), images))["params"]


def count(name):
    return sum(leaf.size for leaf in jax.tree.leaves(shapes(name)))


@pytest.mark.parametrize("x", [1, 3])
def test_cross_stitch_adds_one_number_per_pair_of_paths(x):
    assert count(f"Cr-Stitch{x}") == x * count("BaseCNN") + x + 4 * x * x


@pytest.mark.parametrize("x", [1, 3])
@pytest.mark.parametrize("shortcut", ["", "-shortcut"])
def test_nddr_takes_any_number_of_paths(x, shortcut):
    conv = 3 * 3 * (3 * 32 + 32 * 32 + 64 * 64 + 128 * 128) + 3 * (32 + 32 + 64 + 128)
    dense = (8 * 8 * 128 * 32 + 32) + 2 * 32 + (32 * 10 + 10)  # BatchNorm in the hidden layer
    fused = sum(x * c * f + 3 * f for c, f in ((32, 64), (64, 128), (32, 32)))
    joined = (32 + 64 + 128) * 128 + 3 * 128 if shortcut else 0
    assert count(f"NDDR-CNN{x}{shortcut}") == x * (conv + dense + fused) + joined


def test_constant_gates_and_cross_stitch_coefficients_are_the_same_network():
    """If the last kernel of a gate is zero, the gate is softmax(b2) for every input."""
    routed = multipath_jax.create_model("BaseCNN-2-CC")
    stitched = multipath_jax.create_model("Cr-Stitch2")
    variables = random_like(jax.eval_shape(routed.init, jax.random.key(0), SMALL), seed=0)
    params, coefficients = dict(variables["params"]), {}
    for number in range(1, 6):
        gate = params[f"router_{number}"]["gate"]
        b2 = jax.random.normal(jax.random.key(number), gate["b2"].shape)
        constant = gate | {"w1": 0 * gate["w1"], "w2": 0 * gate["w2"], "b2": b2}
        params[f"router_{number}"] = {"gate": constant}
        coefficients[f"stitch_{number}"] = {"coefficients": jax.nn.softmax(b2)}
    layers = {key: value for key, value in params.items() if not key.startswith("router")}
    statistics = variables["batch_stats"]
    expected = jax.jit(routed.apply)({"params": params, "batch_stats": statistics}, SMALL)

    @jax.jit
    def stitch(coefficients):
        variables = {"params": layers | coefficients, "batch_stats": statistics}
        return stitched.apply(variables, SMALL)

    np.testing.assert_allclose(stitch(coefficients), expected, rtol=1e-5, atol=1e-6)
    other = jax.tree.map(lambda a: a + 0.5, coefficients)
    assert not np.allclose(stitch(other), expected, atol=1e-3)


@pytest.mark.parametrize(
    "name",
    [pytest.param("NDDR-CNN2", marks=pytest.mark.slow), "NDDR-CNN2-shortcut", "Cr-Stitch2"],
)
def test_the_way_paths_run_changes_no_response(name):
    unrolled, grouped = (
        multipath_jax.create_model(name, execution=execution)
        for execution in ("unrolled", "grouped")
    )
    variables = random_like(jax.eval_shape(unrolled.init, jax.random.key(0), SMALL), seed=0)
    variables = {key: variables[key] for key in ("params", "batch_stats")}
    expected, actual = (jax.jit(one.apply)(variables, SMALL) for one in (unrolled, grouped))
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_squeeze_excite_follows_every_convolution():
    names = {name for stage in (1, 2, 3) for name in shapes("SEBaseCNN", 8)[f"stage_{stage}"]}
    assert names == {"conv_1", "conv_2", "squeeze_1", "squeeze_2"}
    assert "squeeze_3" in shapes("SEDeepCNN", 8)["stage_4"]
