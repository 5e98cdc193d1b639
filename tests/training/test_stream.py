"""Streamed batches are the resident ones: the same order, the same numbers, bit for bit."""

import jax
import numpy as np
import pytest
import tiny
from workdirs import final

from multipath_jax.trainer import train
from multipath_jax.training import loop, trials
from multipath_jax.training.parts import Parts
from multipath_jax.training.stream import StreamRunner

pytestmark = pytest.mark.usefixtures("tiny_model")


def recipe(data_dir, streamed, **changes):
    changes = {"train_for": "3 epochs", "schedule.drops": "", **changes}
    return tiny.tiny_config(data_dir, **{"dataset.streamed": streamed} | changes)


@pytest.fixture(scope="module")
def resident(data_dir, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("multipath_jax.training.parts.create_model", tiny.create_model)
        workdir = tmp_path_factory.mktemp("resident")
        train(recipe(data_dir, False), workdir)
        return final(workdir, recipe(data_dir, False))


def test_a_streamed_run_is_the_resident_one(data_dir, workdir, resident):
    config = recipe(data_dir, True)
    assert isinstance(Parts(config).runner(), StreamRunner)
    train(config, workdir)
    jax.tree.map(np.testing.assert_array_equal, final(workdir, config), resident)


def test_a_run_may_change_from_one_to_the_other(data_dir, workdir, resident, monkeypatch):
    monkeypatch.setattr(loop.Pace, "steps", lambda _, limit: min(limit, 3))
    for streamed, calls in ((True, 5), (False, 3), (True, 99)):
        stops = iter([False] * calls + [True])
        train(recipe(data_dir, streamed), workdir, should_stop=lambda: next(stops))  # noqa: B023
    jax.tree.map(np.testing.assert_array_equal, final(workdir, recipe(data_dir, True)), resident)


@pytest.mark.slow
def test_trials_side_by_side_have_orders_of_their_own(data_dir, workdir, resident):
    config = recipe(data_dir, True, trials=2, side_by_side="on")
    trials.train_trials(config, workdir)
    found = final(workdir / "seed_0", recipe(data_dir, True))
    # One program for both adds up in another order; 33 steps at rate 0.5 carry that on.
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)  # noqa: E731
    jax.tree.map(close, found.state.params, resident.state.params)


def test_the_host_sends_only_what_the_order_names(data_dir):
    parts = Parts(recipe(data_dir, True))
    runner = parts.runner()
    order = np.arange(parts.train_size, dtype=np.int32)[::-1]
    (batch,) = runner._cut(parts.data, [order], 1)
    expected = parts.dataset.train.images[order[128:256]]
    np.testing.assert_array_equal(batch.images, expected)
    assert [shard.data.shape[0] for shard in batch.images.addressable_shards] == [64, 64]
