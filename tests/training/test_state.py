import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from multipath_jax.training import state as s
from multipath_jax.training.config import default_config


def optimizer(rate=0.1, momentum=0.9, weight_decay=0.01, nesterov=False):
    config = default_config().optimizer
    config.momentum, config.weight_decay, config.nesterov = momentum, weight_decay, nesterov
    return s.make_optimizer(config, lambda _: rate)


@cache
def fresh(seed=0):
    return jax.jit(partial(s.create_state, tiny.Tiny(), optimizer(), (8, 8, 1), seed))()


def test_only_kernels_decay():
    decayed = s.is_decayed(fresh().params)
    assert decayed["conv"] == decayed["head"] == {"kernel": True, "bias": False}
    assert decayed["norm"] == {"scale": False, "bias": False}
    gate = {"w1": True, "b1": False, "w2": True, "b2": False}
    assert decayed["router_1"] == decayed["router_2"] == {"gate": gate}


def test_the_update_is_sgd_with_coupled_decay_and_momentum():
    """v <- 0.9 v + (g + 0.01 w), w <- w - 0.1 v; biases without the 0.01 w."""
    params = {"kernel": jnp.array([1.0, -2.0]), "bias": jnp.array([3.0])}
    grads = [{"kernel": jnp.array([0.5, 0.25]), "bias": jnp.array([-1.0])}] * 3
    transform = optimizer()
    opt_state = transform.init(params)
    w, v = {k: np.asarray(p) for k, p in params.items()}, {"kernel": 0.0, "bias": 0.0}
    for g in grads:
        updates, opt_state = transform.update(g, opt_state, params)
        params = optax.apply_updates(params, updates)
        for key, decay in (("kernel", 0.01), ("bias", 0.0)):
            v[key] = 0.9 * v[key] + np.asarray(g[key]) + decay * w[key]
            w[key] = w[key] - 0.1 * v[key]
            # float32 arithmetic of three steps.
            np.testing.assert_allclose(params[key], w[key], rtol=1e-6)


def test_the_moving_average_is_of_all_variables():
    """a <- d a + (1 - d) w, where d is (n - 1) / (n + 8) in the n-th step until it reaches 0.5."""
    rng, state = np.random.default_rng(0), fresh()
    state = state.replace(average=jax.tree.map(jnp.zeros_like, state.variables))
    expected = jax.tree.map(np.zeros_like, jax.device_get(state.variables))
    for step in range(1, 15):
        noisy = jax.tree.map(lambda x: x + rng.normal(size=x.shape), state.variables)
        state = state.replace(step=jnp.int32(step), **noisy)
        state = state.replace(average=s.moving_average(state, 0.5))
        d = min(0.5, (step - 1) / (step + 8))
        expected = jax.tree.map(lambda a, w: d * a + (1 - d) * w, expected, noisy)  # noqa: B023
        # float32 arithmetic of up to fourteen steps.
        close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
        jax.tree.map(close, state.average, expected)
    jax.tree.map(np.testing.assert_array_equal, state.weights, state.average)


def test_no_average_is_no_array_more():
    names = {field.name for field in dataclasses.fields(fresh())} - {"average"}
    assert fresh().weights["params"] is fresh().params
    kept = jax.tree.leaves([getattr(fresh(), name) for name in names])
    assert len(jax.tree.leaves(fresh())) == len(kept)


def test_a_seed_fixes_the_start():
    same, other = fresh.__wrapped__(0), fresh(1)
    jax.tree.map(np.testing.assert_array_equal, fresh(0), same)
    assert not np.array_equal(same.params["conv"]["kernel"], other.params["conv"]["kernel"])
    assert same.step == 0


def test_streams_and_steps_have_keys_of_their_own():
    state = fresh()
    keys = [
        state.replace(step=jnp.int32(step)).step_key(number)
        for step in (0, 1)
        for number in (s.INIT, s.ORDER, s.AUGMENT, s.GATES, s.MIX)
    ]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == len(keys)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_number_is_enough_to_be_not_finite(bad):
    state = fresh()
    assert s.all_finite(state)
    broken = state.params["head"]["bias"].at[3].set(bad)
    assert not s.all_finite(state.replace(params=state.params | {"head": {"bias": broken}}))


def test_nesterovs_update_looks_ahead():
    """v <- 0.9 v + g, w <- w - 0.1 (g + 0.9 v), g with the decay (Sutskever et al., 2013)."""
    params = {"kernel": jnp.array([1.0, -2.0])}
    transform = optimizer(nesterov=True)
    opt_state = transform.init(params)
    w, v = np.array([1.0, -2.0]), 0.0
    for gradient in ([0.5, 0.25], [-1.0, 0.5], [0.25, 2.0]):
        updates, opt_state = transform.update({"kernel": jnp.array(gradient)}, opt_state, params)
        params = optax.apply_updates(params, updates)
        g = np.array(gradient) + 0.01 * w
        v = 0.9 * v + g
        w = w - 0.1 * (g + 0.9 * v)
        # float32 arithmetic of three steps.
        np.testing.assert_allclose(params["kernel"], w, rtol=1e-6)
