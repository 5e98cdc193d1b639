"""Discrete routing (D1-D9), compared with loops, the soft layer and finite differences."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec
from jax.test_util import check_grads

from multipath_jax import routing

pytestmark = pytest.mark.usefixtures("strict")

M, B, N, C = 3, 5, 4, 2
RNG = np.random.default_rng(0)
SCORES = RNG.normal(size=(M, B, N)).astype(np.float32)
XS = RNG.normal(size=(M, B, 3, 2, C)).astype(np.float32)
ACTIVE = RNG.random((M, B)) < 0.6
ACTIVE[0] |= ~ACTIVE.any(axis=0)  # every image has an active input
KEPT = ("renormalized", "factor")
# About ten float32 operations on numbers of order one, each with an error of at most 2^-24.
CLOSE = {"rtol": 1e-6, "atol": 1e-6}


def loops(scores, relevance, xs, active, k, kept):
    """D1 to D4 as plain loops; returns gates, outputs, and which outputs are active."""
    gates = np.zeros(scores.shape)
    ys = np.zeros((N, *xs.shape[1:]))
    outputs = np.zeros((N, B), bool)
    for b in range(B):
        for i in range(M):
            if not active[i, b]:
                continue
            order = sorted(range(N), key=lambda j: (-scores[i, b, j], j))
            soft = [math.exp(relevance[i, b, j]) for j in range(N)]
            over = sum(soft[j] for j in (order[:k] if kept == "renormalized" else range(N)))
            for j in order[:k]:
                gates[i, b, j] = soft[j] / over
                ys[j, b] += gates[i, b, j] * xs[i, b]
                outputs[j, b] = True
    return gates, ys, outputs


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_the_layer_is_its_loops(k, kept):
    bias = jnp.float32([0.0, 1.0, -1.0, 0.3])
    scores = SCORES + np.asarray(bias)
    chosen = routing.choose(jnp.asarray(scores), k)
    gates = routing.remaining_gates(jnp.asarray(SCORES), chosen, kept)
    gates = routing.of_active(gates, jnp.asarray(ACTIVE))
    ys = routing.cross_connect(jnp.asarray(XS), gates)
    expected_gates, expected_ys, expected_active = loops(scores, SCORES, XS, ACTIVE, k, kept)
    np.testing.assert_allclose(gates, expected_gates, **CLOSE)
    np.testing.assert_allclose(ys, expected_ys, **CLOSE)
    np.testing.assert_array_equal(
        routing.active_outputs(chosen, jnp.asarray(ACTIVE)), expected_active
    )
    mean = [expected_ys[expected_active[:, b], b].mean(0) for b in range(B)]
    found = routing.mean_of_active(ys, jnp.asarray(expected_active))
    np.testing.assert_allclose(found, mean, **CLOSE)


def test_of_equal_scores_the_first_is_chosen():
    scores = jnp.float32([[0, 1, 1, 0], [2, 2, 2, 2]])
    np.testing.assert_array_equal(
        routing.choose(scores, 1), [[False, True, False, False], [True, False, False, False]]
    )
    np.testing.assert_array_equal(
        routing.choose(scores, 3), [[True, True, True, False], [True, True, True, False]]
    )


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("through", [False, True])
def test_all_chosen_is_the_soft_layer_to_the_bit(kept, through):
    def soft(scores, xs):
        return routing.cross_connect(xs, jax.nn.softmax(scores))

    def discrete(scores, xs):
        gates = routing.remaining_gates(scores, routing.choose(scores, N), kept)
        if through:
            gates = routing.straight_through(gates, jax.nn.softmax(scores))
        return routing.cross_connect(xs, routing.of_active(gates, jnp.ones((M, B), bool)))

    def both_ways(layer):
        ys, backward = jax.vjp(layer, jnp.asarray(SCORES), jnp.asarray(XS))
        return ys, backward(jnp.cos(ys))

    jax.tree.map(np.testing.assert_array_equal, both_ways(discrete), both_ways(soft))


@pytest.mark.parametrize(
    ("k", "kept"),
    [
        (1, "renormalized"),
        (1, "factor"),
        pytest.param(2, "renormalized", marks=pytest.mark.slow),
        pytest.param(2, "factor", marks=pytest.mark.slow),
    ],
)
def test_gradients_are_those_of_finite_differences(k, kept, x64):
    """The layer is differentiable at points where a small change does not alter the choices."""
    scores, xs = jnp.asarray(SCORES, jnp.float64), jnp.asarray(XS, jnp.float64)

    @jax.jit
    def layer(scores, xs):
        gates = routing.remaining_gates(scores, routing.choose(scores, k), kept)
        gates = routing.of_active(gates, jnp.asarray(ACTIVE))
        return jnp.sin(routing.cross_connect(xs, gates))

    check_grads(layer, (scores, xs), order=1, modes=["fwd", "rev"], rtol=1e-6, atol=1e-6, eps=1e-4)
    found = jax.grad(lambda scores: layer(scores, xs).sum())(scores)
    assert not found[~ACTIVE].any()  # scores of inactive inputs have no effect
    learns = k > 1 or kept == "factor"
    assert found[ACTIVE].any() == learns  # the renormalized gate of k = 1 is constant


def test_straight_through_is_the_soft_gate_backward():
    scores, noise, temperature = jnp.asarray(SCORES), jnp.asarray(SCORES[::-1]), 0.5

    def soft(scores):
        return jax.nn.softmax((scores + noise) / temperature)

    def hard(scores):
        return routing.remaining_gates(scores, routing.choose(scores + noise, 1))

    def gates(scores):
        return routing.straight_through(hard(scores), soft(scores))

    found, backward = jax.vjp(gates, scores)
    # The forward pass is h + (p - p), where the difference is exactly zero.
    np.testing.assert_array_equal(found, hard(scores))
    cotangent = jnp.cos(jnp.asarray(SCORES))
    np.testing.assert_array_equal(backward(cotangent)[0], jax.vjp(soft, scores)[1](cotangent)[0])


def test_moments_are_those_of_the_active_images():
    x, active = XS[0], ACTIVE[1]
    mean, variance, count = routing.active_moments(jnp.asarray(x), jnp.asarray(active))
    seen = x[active].reshape(-1, C)
    np.testing.assert_allclose(mean, seen.mean(0), **CLOSE)
    np.testing.assert_allclose(variance, seen.var(0), **CLOSE)
    assert int(count) == active.sum()
    none = routing.active_moments(jnp.asarray(x), jnp.zeros(B, bool))
    np.testing.assert_array_equal(jnp.concatenate([*none[:2], none[2][None]]), np.zeros(2 * C + 1))


def test_moments_and_load_of_images_on_two_devices():
    x, active = jnp.asarray(XS[0][:4]), jnp.asarray(ACTIVE[:, :4])
    chosen = routing.choose(jnp.asarray(SCORES[:, :4]), 2)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    split, over = PartitionSpec("data"), PartitionSpec(None, "data")

    def local(x, active, chosen):
        found = routing.active_moments(x, active[1], "data")
        return *found, routing.load(chosen, active, "data")

    sharded = jax.shard_map(
        local, mesh=mesh, in_specs=(split, over, over), out_specs=PartitionSpec()
    )
    found = jax.jit(sharded)(x, active, chosen)
    expected = *routing.active_moments(x, active[1]), routing.load(chosen, active)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), found, expected)


def test_the_bias_moves_against_the_load():
    chosen = np.zeros((M, B, N), bool)
    chosen[..., 0] = True
    chosen[1, :, 0], chosen[1, :, 1] = False, True
    load = routing.load(jnp.asarray(chosen), jnp.asarray(ACTIVE))
    second = ACTIVE[1].sum() / ACTIVE.sum()
    np.testing.assert_allclose(load, [1 - second, second, 0, 0], **CLOSE)
    bias = routing.moved_against(jnp.float32([0.7, 0.25, 0.05, 0.0]), jnp.zeros(4), 0.1)
    np.testing.assert_allclose(bias, [-0.1, 0, 0.1, 0.1], **CLOSE)


def test_entropies_of_all_inputs_and_of_each():
    gates = np.asarray(jax.nn.softmax(jnp.asarray(SCORES)))
    whole, each = routing.entropies(jnp.asarray(gates), jnp.asarray(ACTIVE))

    def entropy(p):
        return -(p * np.log(p)).sum(-1) / np.log(N)

    np.testing.assert_allclose(whole, entropy(gates[ACTIVE].mean(0)), **CLOSE)
    np.testing.assert_allclose(each, entropy(gates[ACTIVE]).mean(), **CLOSE)
    even = jnp.full((M, B, N), 1 / N)
    np.testing.assert_allclose(routing.entropies(even, jnp.asarray(ACTIVE)), [1, 1], **CLOSE)
    single = jax.nn.one_hot(jnp.zeros((M, B), int), N)
    np.testing.assert_array_equal(routing.entropies(single, jnp.asarray(ACTIVE)), [0, 0])


@pytest.mark.parametrize("k", [0, 5])
def test_a_k_that_cannot_be_is_named(k):
    with pytest.raises(ValueError, match=rf"1 <= k <= n, got k = {k} of n = 4 outputs"):
        routing.choose(jnp.asarray(SCORES), k)


def test_a_form_that_is_not_there_is_named():
    forms = routing.remaining_gates.__wrapped__  # unwrapped: annotations are not checked
    with pytest.raises(ValueError, match="'renormalized' or 'factor', got 'half'"):
        forms(jnp.asarray(SCORES), jnp.ones((M, B, N), bool), "half")
