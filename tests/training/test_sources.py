"""Streamed and resident batches have the same order and give bitwise identical results."""

from functools import partial

import jax
import numpy as np
import pytest
import tiny
from workdirs import final

from multipath_jax.training.sources import Streamed


def recipe(data_dir, streamed, **changes):
    changes = {"train_for": "2 epochs", "schedule.boundaries": "", **changes}
    return tiny.tiny_config(data_dir, **{"dataset.streamed": streamed} | changes)


@pytest.fixture(scope="module")
def resident(data_dir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("resident")
    config = recipe(data_dir, False)
    tiny.train(config, workdir)
    return final(workdir, tiny.setup_of(config))


def test_a_streamed_run_is_the_resident_one(data_dir, workdir, resident):
    config = recipe(data_dir, True)
    setup = tiny.setup_of(config)
    assert isinstance(setup.source, Streamed)
    tiny.train(config, workdir)
    jax.tree.map(np.testing.assert_array_equal, final(workdir, setup), resident)


def test_a_run_may_change_from_one_to_the_other(data_dir, workdir, resident):
    for streamed, calls in ((True, 3), (False, 2), (True, 99)):
        should_stop = partial(next, iter([False] * calls + [True]))
        config = recipe(data_dir, streamed)
        tiny.train(config, workdir, should_stop=should_stop, steps_per_call=3)
    found = final(workdir, tiny.setup_of(config))
    jax.tree.map(np.testing.assert_array_equal, found, resident)


def batches(source, rng, epoch, first_step):
    """The batches of an epoch from ``first_step`` on."""
    return [
        source.batch(given, source.steps_per_epoch * epoch + first_step + number)
        for number, given in enumerate(source.batches(rng, epoch, first_step))
    ]


@pytest.mark.parametrize("streamed", [False, True])
def test_an_epoch_has_every_example_once_in_an_order_of_its_own(data_dir, streamed):
    setup = tiny.setup_of(recipe(data_dir, streamed))
    rng = setup.fresh_carry(0).state.rng
    first, second = (batches(setup.source, rng, epoch, 0) for epoch in (0, 1))
    assert len(first) == len(second) == 1442 // 128
    images = np.concatenate([batch.images for batch in first])
    known = {image.tobytes() for image in setup.dataset.train.images}
    assert len({image.tobytes() for image in images} & known) > 0.99 * len(images)  # some are equal
    assert any(np.any(a.labels != b.labels) for a, b in zip(first, second, strict=True))
    rest = batches(setup.source, rng, 1, 7)
    jax.tree.map(np.testing.assert_array_equal, rest, second[7:])


def test_the_host_sends_only_what_the_order_names(data_dir):
    source = tiny.setup_of(recipe(data_dir, True)).source
    rng = jax.random.key_data(jax.random.key(3))
    batch = next(source.batches(rng, 0, 1))
    order = np.asarray(source._order(rng, 0))
    expected = source._split.images[order[128:256]]
    np.testing.assert_array_equal(batch.images, expected)
    assert [shard.data.shape[0] for shard in batch.images.addressable_shards] == [64, 64]
