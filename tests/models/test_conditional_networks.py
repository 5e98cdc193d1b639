"""Tests of networks that skip blocks: their records, losses and decisions."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import multipath_jax
from multipath_jax.layers import straight_through

IMAGES = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))
RNGS = {"gates": jax.random.key(5)}
SHALLOW = {  # options for three blocks
    "ConvNet-AIG": {"depth": 8},
    "ConvNet-AIG-all": {"depth": 8},
    "SkipNet": {"depth": 8},
    "BlockDrop": {"blocks": 1},
}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=pytest.mark.slow if name == "ConvNet-AIG-all" else ())
        for name in SHALLOW
    ],
)
def network(request):
    model = multipath_jax.create_model(request.param, **SHALLOW[request.param])
    variables = jax.jit(model.init)(jax.random.key(0), IMAGES)
    return (
        request.param,
        model,
        {key: variables[key] for key in ("params", "batch_stats")},
    )


def train(model, variables):
    apply = partial(
        model.apply, train=True, rngs=RNGS, mutable=["intermediates", "batch_stats", "losses"]
    )
    return jax.jit(apply)(variables, IMAGES)


def decisions(recorded):
    return [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(recorded["intermediates"])
        if any(getattr(key, "key", None) == "keep" for key in path)
    ]


def test_every_block_records_a_hard_decision_in_training(network):
    name, model, variables = network
    logits, recorded = train(model, variables)
    assert logits.shape == (4, 10)
    keeps = decisions(recorded)
    assert [keep.shape for keep in keeps] == [(4,)] * 3
    assert set(np.unique(keeps)) <= {0.0, 1.0}
    losses = jax.tree.leaves(recorded.get("losses", {}))
    assert len(losses) == {"SkipNet": 0, "BlockDrop": 1}.get(name, 3)
    if "AIG" in name:
        expected = sum(2 / 3 * (keep.mean() - 0.7) ** 2 for keep in keeps)
        np.testing.assert_allclose(sum(losses), expected, rtol=1e-5)


def test_inference_needs_no_random_numbers_and_records_no_loss(network):
    name, model, variables = network
    infer = jax.jit(partial(model.apply, mutable=["intermediates", "losses"]))
    logits, recorded = infer(variables, IMAGES)
    assert jnp.isfinite(logits).all()
    assert not recorded.get("losses")
    keeps = np.stack(decisions(recorded))
    if name == "ConvNet-AIG-all":
        assert ((keeps > 0) & (keeps < 1)).all()
    else:
        assert set(np.unique(keeps)) <= {0.0, 1.0}


def test_the_classification_teaches_the_gates(network):
    name, model, variables = network

    @jax.jit
    @jax.grad
    def gradient_of(params):
        logits, _ = train(model, variables | {"params": params})
        return -jax.nn.log_softmax(logits)[:, 0].mean()

    gradient = gradient_of(variables["params"])
    if name == "BlockDrop":
        learning = gradient["policy"]["dense"]
    else:
        learning = gradient["stack_1"]["block_1"]["gate"]["dense_2"]
    assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(learning))


@pytest.mark.parametrize("controlled", [0, 1, 3])
def test_blockdrop_s_curriculum_leaves_the_first_blocks_running(controlled):
    model = multipath_jax.create_model("BlockDrop", blocks=1, controlled=controlled)
    variables = jax.jit(model.init)(jax.random.key(0), IMAGES)
    params = variables["params"]
    dense = params["policy"]["dense"]["dense"]
    never = {"dense": {"kernel": 0 * dense["kernel"], "bias": dense["bias"] - 100}}
    params = params | {"policy": params["policy"] | {"dense": never}}
    _, recorded = train(model, {"params": params, "batch_stats": variables["batch_stats"]})
    expected = np.ones((3, 4))
    expected[3 - controlled :] = 0
    np.testing.assert_array_equal(decisions(recorded), expected)
    (usage,) = recorded["losses"]["usage"]
    assert usage == pytest.approx(((3 - controlled) / 3) ** 2)


def test_straight_through_is_exactly_hard():
    soft = jax.random.uniform(jax.random.key(0), (1000,))
    np.testing.assert_array_equal(straight_through(jnp.round(soft), soft), jnp.round(soft))
