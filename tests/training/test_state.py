import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from multipath_jax.config.keys import default_config
from multipath_jax.training import state as s
from multipath_jax.training.optimizer import make_optimizer


@cache
def fresh(seed=0):
    optimizer = make_optimizer(default_config().optimizer, lambda _: 0.1)
    return jax.jit(partial(s.create_state, tiny.Tiny(), optimizer, (8, 8, 1), seed))()


def test_the_moving_average_is_of_all_variables():
    """a <- d a + (1 - d) w, where d in the n-th step is min(0.5, (n - 1) / (n + 8))."""
    rng, state = np.random.default_rng(0), fresh()
    state = state.replace(average=jax.tree.map(jnp.zeros_like, state.variables))
    expected = jax.tree.map(np.zeros_like, jax.device_get(state.variables))
    for step in range(1, 15):
        noisy = jax.tree.map(lambda x: x + rng.normal(size=x.shape), state.variables)
        state = state.replace(
            step=jnp.int32(step),
            params=noisy["params"],
            collections={"batch_stats": noisy["batch_stats"]},
        )
        state = state.replace(average=s.moving_average(state, 0.5))
        d = min(0.5, (step - 1) / (step + 8))
        expected = jax.tree.map(lambda a, w: d * a + (1 - d) * w, expected, noisy)  # noqa: B023
        # float32 arithmetic of up to fourteen steps.
        close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
        jax.tree.map(close, state.average, expected)
    jax.tree.map(np.testing.assert_array_equal, state.weights, state.average)


def test_the_moving_average_of_a_counter_is_the_counter():
    state = fresh().replace(collections={"counts": {"calls": jnp.int32(7)}})
    state = state.replace(average=jax.tree.map(jnp.zeros_like, state.variables))
    found = s.moving_average(state, 0.5)["counts"]["calls"]
    assert (found, found.dtype) == (7, jnp.int32)


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
