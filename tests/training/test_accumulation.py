"""Gradient accumulation over micro-batches, compared with the same sums in NumPy."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from multipath_jax.config.keys import default_config
from multipath_jax.parallel.devices import make_mesh, replicated, split_batch
from multipath_jax.training import step as step_lib
from multipath_jax.training.accumulation import Pass, accumulated, split
from multipath_jax.training.optimizer import make_optimizer
from multipath_jax.training.state import create_state

COUNT, BATCH = 3, 12
IMAGES = jnp.float32(np.random.default_rng(0).normal(size=(BATCH, 8, 8, 1)))
LABELS = jnp.arange(BATCH) % 10


def gradient(params, collections, images, labels, key):
    """A nonlinear function, for which any other order or grouping gives other results."""
    mean = images.mean()
    found = Pass(collections / 2 + mean, mean**2, labels > 3, {"share": images.max()})
    return {"w": params["w"] * mean**3}, found


@pytest.mark.parametrize("unroll", [True, False])
def test_the_parts_are_taken_one_after_another_and_averaged(unroll):
    params, stats = {"w": jnp.arange(2.0)}, jnp.float32(5)
    found = accumulated(gradient, COUNT, unroll)(params, stats, IMAGES, LABELS, jax.random.key(0))
    means = np.array([IMAGES[first::COUNT].mean() for first in range(COUNT)])
    for mean in means:
        stats = stats / 2 + mean
    close = partial(np.testing.assert_allclose, rtol=1e-5)  # float32 sums of 256 numbers
    close(found[0]["w"], np.arange(2) * (means**3).mean())
    close(found[1].collections, stats)
    close(found[1].loss, (means**2).mean())
    largest = [IMAGES[first::COUNT].max() for first in range(COUNT)]
    close(found[1].routing["share"], np.mean(largest))
    assert found[1].wrong.shape == (BATCH,)
    assert found[1].wrong.sum() == (LABELS > 3).sum()


def test_every_part_has_random_numbers_of_its_own():
    def gradient(params, collections, images, labels, key):
        drawn = jax.random.uniform(key)
        return params, Pass(collections, drawn, labels > 0, {"drawn": drawn**2})

    key = jax.random.key(0)
    _, found = accumulated(gradient, COUNT, True)({}, {}, IMAGES, LABELS, key)
    # The mean square equals the square of the mean only if all numbers are the same.
    assert float(found.routing["drawn"]) > 1.01 * float(found.loss) ** 2


def test_one_part_is_the_function_itself():
    assert accumulated(gradient, 1, False) is gradient


def test_every_device_keeps_its_own_examples():
    mesh = make_mesh(default_config())
    images = jax.device_put(IMAGES, split_batch(mesh))
    setup = jax.jit(partial(split, count=COUNT))(images)
    np.testing.assert_array_equal(setup[1], IMAGES[1::COUNT])
    assert setup.sharding.is_equivalent_to(split_batch(mesh, axis=1), setup.ndim)


def prepare(state, batch):
    return batch.images


@cache  # compiled once for all tests
def train_step(accumulate, unroll=True):
    optimizer = make_optimizer(default_config().optimizer, lambda _: 0.1)
    step = step_lib.make_train_step(
        tiny.Tiny(), optimizer, prepare, accumulate=accumulate, unroll=unroll
    )
    return step, partial(create_state, tiny.Tiny(), optimizer, (8, 8, 1), 0)


def close(a, b):
    """Asserts equality up to float32 rounding, by which sums in different programs differ."""
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), a, b)


def test_a_step_of_micro_batches_is_one_step_of_their_mean_gradient():
    """Compares with an `accumulate=1` step on each micro-batch, all from the same weights."""
    step, create = train_step(COUNT)
    one, _ = train_step(1)
    state = jax.jit(create)()
    batch = step_lib.Batch(IMAGES, LABELS)
    after, metrics = step(state, batch)
    assert after.step == 1
    ends, losses, errors, stats = [], [], [], state.collections
    for first in range(COUNT):
        micro = step_lib.Batch(batch.images[first::COUNT], batch.labels[first::COUNT])
        end, found = one(state.replace(collections=stats), micro)
        stats = end.collections
        ends.append(end.params)
        losses.append(float(found.loss.compute()))
        errors.append(float(found.error.compute()))
    # The update is linear in the gradient, so the mean gradient gives the mean of the weights.
    close(after.params, jax.tree.map(lambda *leaves: sum(leaves) / COUNT, *ends))
    close(after.collections, stats)
    assert float(metrics.loss.compute()) == pytest.approx(np.mean(losses), rel=1e-5)
    assert float(metrics.error.compute()) == pytest.approx(np.mean(errors), rel=1e-6)


def test_a_loop_and_two_devices_compute_the_same():
    mesh = make_mesh(default_config())
    step, create = train_step(COUNT)
    state = jax.jit(create)()
    batch = step_lib.Batch(IMAGES, LABELS)
    expected = step(state, batch)
    looped, _ = train_step(COUNT, unroll=False)
    spread = looped(
        jax.device_put(state, replicated(mesh)), jax.device_put(batch, split_batch(mesh))
    )
    close(spread[0].params, expected[0].params)
    close(spread[1].loss, expected[1].loss)
    np.testing.assert_array_equal(spread[1].error.total, expected[1].error.total)
