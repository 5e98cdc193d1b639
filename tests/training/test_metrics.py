import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multipath_jax.data import Heads
from multipath_jax.evaluation import metrics as evaluation
from multipath_jax.training import metrics as m


def routing(gates):
    return m.routing_statistics({"block": {"router_2": {"gates": (jnp.asarray(gates),)}}})


def test_even_routing_has_entropy_one():
    found = routing(np.full((2, 5, 4), 0.25, np.float32))
    assert found["block/router_2/entropy"] == pytest.approx(1.0, rel=1e-6)
    assert [float(found[f"block/router_2/share_{j}"]) for j in (1, 2, 3, 4)] == [0.25] * 4


def test_hard_routing_has_entropy_zero():
    gates = np.zeros((1, 4, 2), np.float32)
    gates[0, :3, 0] = gates[0, 3, 1] = 1
    found = routing(gates)
    assert found["block/router_2/entropy"] == 0
    assert found["block/router_2/share_1"] == 0.75
    assert found["block/router_2/share_2"] == 0.25


def test_one_output_is_no_choice():
    found = routing(np.ones((3, 4, 1), np.float32))
    assert found == {"block/router_2/entropy": 0, "block/router_2/share_1": 1}


def test_entropy_and_shares_by_hand():
    gates = np.array([[[0.9, 0.1]], [[0.5, 0.5]]], np.float32)  # m = 2, b = 1, n = 2
    found = routing(gates)
    entropy = (-(0.9 * np.log2(0.9) + 0.1 * np.log2(0.1)) + 1) / 2
    # float32 logarithms have errors of a few units in the last place.
    assert found["block/router_2/entropy"] == pytest.approx(entropy, rel=1e-6)
    assert found["block/router_2/share_1"] == pytest.approx(0.7, rel=1e-6)


def test_a_router_in_parallel_paths_has_the_means_over_them():
    gates = np.random.default_rng(0).dirichlet(np.ones(4), (3, 2, 5)).astype(np.float32)
    chosen = gates == gates.max(-1, keepdims=True)
    records = {"gates": jnp.asarray(gates), "chosen": jnp.asarray(chosen)}
    found, expected = (
        m.routing_statistics({"router": {key: (r.reshape(s),) for key, r in records.items()}})
        for s in ((3, 2, 5, 4), (6, 5, 4))
    )
    assert found == expected
    assert float(found["router/load_2"]) == pytest.approx(chosen[..., 1].mean())


def test_other_records_are_no_gates():
    assert m.routing_statistics({"router_1": {"relevance": (jnp.ones((1, 2, 3)),)}}) == {}


def step_metrics(loss, step, gate=0.5, wrong=(True, False)):
    return m.TrainMetrics.single_from_model_output(
        loss=jnp.float32(loss),
        wrong=jnp.array(wrong),
        routing={"router_1/entropy": jnp.float32(gate)},
        step=jnp.int32(step),
    )


def test_training_metrics_are_means_over_the_steps():
    shapes = jax.eval_shape(lambda: step_metrics(0.0, 0))
    total = m.zeros_like(shapes)
    for update in (step_metrics(1.0, 1, 0.2), step_metrics(3.0, 2, 0.6, (True, True))):
        total = total.merge(update)
    found = total.compute()
    assert (found["loss"], found["error"], found["fault"]) == (2.0, 0.75, 0)
    assert found["routing"]["router_1/entropy"] == pytest.approx(0.4)
    jax.tree.map(np.testing.assert_array_equal, m.zeros_like(shapes).merge(total), total)


def test_the_first_fault_is_the_one_that_is_named():
    total = m.zeros_like(jax.eval_shape(lambda: step_metrics(0.0, 0)))
    for step, loss in enumerate([1.0, np.inf, 2.0, np.nan], start=7):
        total = total.merge(step_metrics(loss, step))
    assert total.compute()["fault"] == 8


def test_errors_of_the_largest_logits():
    logits = jnp.array([[3.0, 2, 1, 0, -1, -2], [0, 1, 2, 3, 4, 5]])
    labels = jnp.array([1, 0])
    assert evaluation.is_wrong(logits, labels).tolist() == [True, True]
    assert evaluation.is_wrong_among(logits, labels, 1).tolist() == [True, True]
    assert evaluation.is_wrong_among(logits, labels, 2).tolist() == [False, True]
    assert evaluation.is_wrong_among(logits, labels, 5).tolist() == [False, True]
    assert evaluation.is_wrong_among(logits, labels, 9).tolist() == [False, False]


def test_errors_are_those_of_the_own_head():
    logits = jnp.array([[1.0, 2, 9, 8, 7], [1, 2, 9, 8, 7], [9, 9, 0, -1, 3]])
    labels, heads = jnp.array([1, 0, 4]), Heads(("a", "b"), (2, 3))
    assert evaluation.is_wrong(logits, labels, heads).tolist() == [False, True, False]


def test_equal_logits_are_no_success():
    """A network with equal logits for all classes has the error of random guesses."""
    logits, labels = jnp.zeros((10, 10)), jnp.arange(10)
    assert evaluation.is_wrong(logits, labels).mean() == pytest.approx(0.9)
    assert evaluation.is_wrong_among(logits, labels, 5).mean() == 0.5
