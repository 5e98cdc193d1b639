"""Tests of the plain networks of Table 1: numbers of parameters, routers and execution."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from weights import random_like

import multipath_jax

IMAGES = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
SMALL = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))


def shapes(model, images=IMAGES):
    return jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))


def count(model):
    return sum(leaf.size for leaf in jax.tree.leaves(shapes(model)["params"]))


def of_conv(k, c, f):
    """The parameters of a kernel and a bias, and of BatchNorm's scale and shift."""
    return k * k * c * f + f + 2 * f


def of_base_cnn(classes=10):
    convs = [(3, 32), (32, 32), (32, 64), (64, 64), (64, 128), (128, 128)]
    dense = [(8 * 8 * 128, 32), (32, 32), (32, classes)]
    norms = 2 * (32 + 32)  # BatchNorm of the hidden dense layers
    return sum(of_conv(3, *conv) for conv in convs) + sum(c * f + f for c, f in dense) + norms


def of_gate(c, n, d=16):
    return c * d + d + d * n + n


@pytest.mark.parametrize("x", [1, 3])
def test_cross_connections_add_only_their_gates(x):
    gates = of_gate(3, x) + sum(x * of_gate(c, x) for c in (32, 64, 128, 32))
    assert count(multipath_jax.create_model(f"BaseCNN-{x}")) == x * of_base_cnn()
    assert count(multipath_jax.create_model(f"BaseCNN-{x}-CC")) == x * of_base_cnn() + gates


@pytest.mark.parametrize("x", [1, 3])
def test_cross_predictions_replace_four_layers(x):
    """Convolutions 1, 3, 5 and dense layer 2 predict X outputs each; gates see their inputs."""
    convs = (
        of_conv(3, 3, x * 32)
        + x * (of_conv(3, 32, x * 64) + of_conv(3, 64, x * 128))
        + x * (of_conv(3, 32, 32) + of_conv(3, 64, 64) + of_conv(3, 128, 128))
    )
    dense = x * ((8 * 8 * 128 * 32 + 32) + (32 * x * 32 + x * 32) + (32 * 10 + 10))
    dense += x * (2 * 32 + 2 * x * 32)  # BatchNorm of the hidden dense layers
    gates = of_gate(3, x) + sum(x * of_gate(c, x) for c in (32, 64, 32))
    assert count(multipath_jax.create_model(f"BaseCNN-{x}-CP")) == convs + dense + gates


@pytest.mark.parametrize(
    ("name", "routers"),
    [
        ("BaseCNN-2-CC", 5),
        ("BaseCNN-2-CP", 4),
        pytest.param("DeepCNN-2-CC", 6, marks=pytest.mark.slow),
    ],
)
def test_gates_are_recorded_router_by_router(name, routers):
    model = multipath_jax.create_model(name)
    variables = random_like(shapes(model, SMALL), seed=0)
    variables = {key: variables[key] for key in ("params", "batch_stats")}
    apply = jax.jit(functools.partial(model.apply, mutable=["intermediates"]))
    logits, recorded = apply(variables, SMALL)
    recorded = recorded["intermediates"]
    assert logits.shape == (2, 10)
    assert set(recorded) == {f"router_{number}" for number in range(1, routers + 1)}
    for number in range(1, routers + 1):
        (gates,) = recorded[f"router_{number}"]["gates"]
        assert gates.shape == (1 if number == 1 else 2, 2, 2)
        assert gates.dtype == jnp.float32
        np.testing.assert_allclose(gates.sum(-1), 1, rtol=1e-6)


def test_without_routing_the_response_is_the_mean_of_separate_networks():
    model, single = (multipath_jax.create_model(name) for name in ("BaseCNN-3", "BaseCNN"))
    variables = random_like(shapes(model, SMALL), seed=0)
    apply = jax.jit(single.apply)
    alone = [apply(jax.tree.map(lambda v, i=i: v[i], variables), SMALL) for i in range(3)]
    together = jax.jit(model.apply)(variables, SMALL)
    np.testing.assert_allclose(together, sum(alone) / 3, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("x64")
@pytest.mark.slow
@pytest.mark.parametrize("overrides", [{"custom_vjp": False}, {"execution": "grouped"}])
def test_the_switches_change_no_parameter_and_no_result(overrides):
    images = SMALL.astype(jnp.float64)

    def outcome(**overrides):
        model = multipath_jax.create_model(
            "BaseCNN-2-CC", num_classes=4, dtype=jnp.float64, **overrides
        )
        variables = jax.jit(model.init)(jax.random.key(0), images)

        def loss(params):
            logits, _ = model.apply(
                {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
            )
            return jnp.sum(logits**2), logits

        params = variables["params"]
        (_, logits), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        return params, logits, grads

    params, logits, grads = outcome()
    scale = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads))
    others, other_logits, other_grads = outcome(**overrides)
    jax.tree.map(np.testing.assert_array_equal, params, others)
    # In float64, since BatchNorm over two images divides by small deviations and amplifies rounding
    # errors: in float32, to 0.3 % of the largest gradient.
    np.testing.assert_allclose(logits, other_logits, rtol=1e-9, atol=1e-9)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9 * scale), grads, other_grads
    )


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters():
    model = multipath_jax.create_model("BaseCNN-2-CC", dtype=jnp.bfloat16)
    variables = shapes(model, SMALL)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    variables = random_like(variables, seed=0)
    exact = jax.jit(multipath_jax.create_model("BaseCNN-2-CC").apply)(variables, SMALL)
    logits = jax.jit(model.apply)(variables, SMALL)
    assert logits.dtype == jnp.float32
    # With 8 bits of mantissa and 9 layers, errors are a few percent of the largest logit.
    np.testing.assert_allclose(logits, exact, atol=0.05 * float(jnp.abs(exact).max()))
    assert not np.array_equal(logits, exact)
