"""Tests of the ablation of data-dependence: only the selected gates are replaced, and correctly."""

import copy
import dataclasses
import functools

import numpy as np
import pytest
import small_networks

from multipath_jax.figures import ablation
from multipath_jax.gates import observe

IMAGES, LABELS = small_networks.images(30), small_networks.labels(30)


@functools.cache
def observed(kind):
    trained = small_networks.network(kind)
    return trained, observe(trained, IMAGES)


def own_gates(found):
    return [np.moveaxis(router.gates, 0, 1) for router in found.routers]


@pytest.mark.parametrize("kind", ["CC", "CP"])
def test_the_networks_own_gates_change_nothing(kind):
    trained, found = observed(kind)
    network = ablation._Network(trained, found)
    logits = network.logits(IMAGES, own_gates(found), np.array([True, True]), batch_size=8)
    # Another batch size changes the order of summation in float32.
    np.testing.assert_allclose(logits, found.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["CC", "CP"])
def test_given_gates_are_what_parameters_for_such_gates_would_be(kind):
    """The first 10 images get one set of gates, and the others get another."""
    trained, found = observed(kind)
    network = ablation._Network(trained, found)
    rng = np.random.default_rng(0)
    sets = [[rng.dirichlet((1, 1), m).astype(np.float32) for m in (1, 2)] for _ in range(2)]
    which = np.arange(len(IMAGES)) >= 10
    given = [np.stack(pair)[which.astype(int)] for pair in zip(*sets, strict=True)]
    logits = network.logits(IMAGES, given, np.array([True, True]), batch_size=30)
    for gates, chosen in zip(sets, (~which, which), strict=True):
        expected = observe(with_gates(trained, gates), IMAGES).logits
        np.testing.assert_allclose(logits[chosen], expected[chosen], rtol=1e-4, atol=1e-4)


def with_gates(trained, gates):
    """The network with parameters that give these gates, ``[m n]``, for every image."""
    variables = copy.deepcopy(trained.variables)
    for number, values in enumerate(gates, start=1):
        params = variables["params"][f"router_{number}"]["gate"]
        params["w2"], params["b2"] = np.zeros_like(params["w2"]), np.log(values)
    return dataclasses.replace(trained, variables=variables)


def test_only_the_marked_routers_are_replaced():
    trained, found = observed("CC")
    network = ablation._Network(trained, found)
    even = [np.full_like(g, 0.5) for g in own_gates(found)]
    none, first, second, both = (
        network.logits(IMAGES, even, np.array(marks), batch_size=30)
        for marks in ([False, False], [True, False], [False, True], [True, True])
    )
    np.testing.assert_allclose(none, found.logits, rtol=1e-4, atol=1e-5)
    for one, other in ((first, none), (second, none), (first, second), (both, first)):
        assert np.abs(one - other).max() > 1e-3


@pytest.mark.parametrize("kind", ["CC", "CP"])
def test_gates_that_do_not_depend_on_the_image_are_worth_nothing(kind):
    trained = small_networks.network(kind, gain=0.0)  # all gates are uniform
    outcomes = ablation.ablate(trained, IMAGES, LABELS, observe(trained, IMAGES))
    assert len(outcomes) == 1 + 3 * 3
    assert [outcome.change for outcome in outcomes] == [0] * 10
    assert [outcome.deviation for outcome in outcomes] == [0] * 10
    losses = [outcome.loss for outcome in outcomes]
    assert losses == pytest.approx([losses[0]] * 10, rel=1e-5)


def test_shuffled_gates_are_those_of_another_image_each_once():
    donors = ablation.others(30, seed=0)
    assert sorted(donors) == list(range(30))
    assert (donors != np.arange(30)).all()
    assert (donors == ablation.others(30, seed=0)).all()
    assert (donors != ablation.others(30, seed=1)).any()


def test_the_outcomes_are_those_of_the_given_gates():
    trained, found = observed("CC")
    outcomes = {(o.kind, o.router): o for o in ablation.ablate(trained, IMAGES, LABELS, found, 3)}
    own, network = own_gates(found), ablation._Network(trained, found)
    donors = ablation.others(30, 3)
    given = {
        ("mean", 2): [g.mean(0, keepdims=True).repeat(30, 0) for g in own],
        ("uniform", None): [np.full_like(g, 0.5) for g in own],
        ("shuffled", 1): [g[donors] for g in own],
    }
    wrong = found.logits.argmax(1) != LABELS
    for (kind, router), gates in given.items():
        marks = np.array([router in (None, 1), router in (None, 2)])
        now = network.logits(IMAGES, gates, marks, 30).argmax(1) != LABELS
        outcome = outcomes[kind, router]
        assert outcome.error == pytest.approx(100 * now.mean())
        assert outcome.change == pytest.approx(100 * (now.mean() - wrong.mean()))
        paired = 100 * (now.astype(float) - wrong)
        assert outcome.deviation == pytest.approx(paired.std() / np.sqrt(30))
    lines = ablation.table(list(outcomes.values())).splitlines()
    assert [line.split("  ")[0] for line in lines[2:]] == ["router 1", "router 2", "all"]
    cell = outcomes["uniform", None]
    assert f"{cell.error:.2f} ({cell.change:+.2f} ± {cell.deviation:.2f})" in lines[-1]
