"""Gates that skip blocks: hard decisions forward, soft gradients backward, and their rates."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multipath_jax.layers import (
    BasicBlock,
    ConditionalBlock,
    GumbelGate,
    SkipGate,
    straight_through,
)

X = jax.random.normal(jax.random.key(0), (64, 4, 4, 8))
RNGS = {"gates": jax.random.key(7)}


def scored(gate, skip, run):
    """Returns parameters of a gate that give every image the scores ``skip`` and ``run``."""
    params = gate.init(jax.random.key(1), X)["params"]
    dense = {"kernel": jnp.zeros((16, 2)), "bias": jnp.array([skip, run])}
    return {"params": params | {"dense_2": dense}}


def test_straight_through_gives_the_one_and_differentiates_the_other():
    soft = jnp.array([0.3, 0.7])
    value, gradient = jax.vjp(lambda s: straight_through(jnp.round(s), s**2), soft)
    np.testing.assert_array_equal(value, [0, 1])
    np.testing.assert_allclose(gradient(jnp.ones(2))[0], 2 * soft, rtol=1e-6)


@pytest.mark.parametrize("gate", [GumbelGate(), SkipGate()])
def test_gates_are_hard_forward_and_learn_backward(gate):
    variables = gate.init(jax.random.key(1), X)

    def keep(params, train):
        return gate.apply({"params": params}, X, train=train, rngs=RNGS)

    for train in (False, True):
        assert set(np.unique(keep(variables["params"], train))) <= {0.0, 1.0}
        gradient = jax.grad(lambda p, t=train: keep(p, t).sum())(variables["params"])
        assert all(jnp.abs(g).max() > 0 for g in jax.tree.leaves(gradient["dense_2"]))


@pytest.mark.parametrize("run", [-1.0, 0.0, 1.5])
def test_gumbel_gates_run_as_often_as_their_softmax_says(run):
    gate = GumbelGate()
    variables = scored(gate, 0.0, run)
    x = jnp.zeros((20000, 1, 1, 8))
    keep = gate.apply(variables, x, train=True, rngs=RNGS)
    assert keep.mean() == pytest.approx(float(jax.nn.sigmoid(run)), abs=0.015)  # 4 std. deviations
    np.testing.assert_array_equal(gate.apply(variables, x), float(run >= 0))


def test_gumbel_gates_record_how_far_they_are_from_their_target():
    gate = GumbelGate(target=0.6, weight=3.0)
    variables = gate.init(jax.random.key(1), X)
    keep, recorded = gate.apply(variables, X, train=True, rngs=RNGS, mutable=["losses"])
    (loss,) = recorded["losses"]["target_rate"]
    assert loss == pytest.approx(3 * (float(keep.mean()) - 0.6) ** 2, rel=1e-5)
    _, recorded = gate.apply(variables, X, mutable=["losses"])
    assert not recorded.get("losses")


def test_run_all_weighs_by_the_probability_at_inference_only():
    gate = GumbelGate(run_all=True)
    variables = scored(gate, 0.0, -1.0)
    np.testing.assert_allclose(gate.apply(variables, X), jax.nn.sigmoid(-1.0), rtol=1e-6)
    assert set(np.unique(gate.apply(variables, X, train=True, rngs=RNGS))) == {0.0, 1.0}


@pytest.mark.parametrize("strides", [1, 2])
def test_a_block_runs_for_the_images_that_keep_it(strides):
    block = ConditionalBlock(8, strides)
    keep = (jnp.arange(64) % 3 == 0).astype(jnp.float32)
    variables = block.init(jax.random.key(1), X, False, keep)
    y, recorded = block.apply(variables, X, False, keep, mutable=["intermediates"])
    np.testing.assert_array_equal(recorded["intermediates"]["keep"][0], keep)
    ran = BasicBlock(8, strides).apply(variables, X)
    skipped = block.apply(variables, X, False, jnp.zeros(64))
    np.testing.assert_allclose(y, jnp.where(keep[:, None, None, None], ran, skipped), atol=1e-6)
    if strides == 1:
        np.testing.assert_array_equal(skipped, jnp.maximum(X, 0))


def test_a_block_asks_its_gate():
    block = ConditionalBlock(8, gate=partial(GumbelGate, weight=1.0))
    variables = block.init(jax.random.key(1), X)
    assert "gate" in variables["params"]
    _, recorded = block.apply(
        variables,
        X,
        train=True,
        rngs=RNGS,
        mutable=["intermediates", "losses", "batch_stats"],
    )
    assert recorded["intermediates"]["keep"][0].shape == (64,)
    assert set(recorded["losses"]) == {"gate"}
