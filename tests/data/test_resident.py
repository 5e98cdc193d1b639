import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from multipath_jax.data import (
    Split,
    batch_at,
    batches_per_epoch,
    epoch_order,
    eval_batches,
    place,
)
from multipath_jax.errors import UserError

KEY = jax.random.key(3)
N = 10


def _split(n: int = N) -> Split:
    images = np.random.default_rng(0).integers(1, 256, (n, 4, 5, 3), np.uint8)
    return Split(images, np.arange(1, n + 1, dtype=np.int32))


def _data(n: int = N):
    return place(_split(n), SingleDeviceSharding(jax.devices()[0]))


def test_place_keeps_the_data_as_they_are():
    split, data = _split(), _data()
    assert (data.images.dtype, data.labels.dtype) == (jnp.uint8, jnp.int32)
    np.testing.assert_array_equal(data.images, split.images)
    np.testing.assert_array_equal(data.labels, split.labels)


def test_place_on_every_device():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    data = place(_split(), NamedSharding(mesh, PartitionSpec()))
    assert len(data.images.devices()) == len(data.labels.devices()) == 2
    assert data.images.is_fully_replicated


def test_order_is_a_permutation_fixed_by_key_and_epoch():
    order = epoch_order(KEY, 0, 1000)
    assert order.dtype == jnp.int32
    np.testing.assert_array_equal(np.sort(order), np.arange(1000))
    np.testing.assert_array_equal(order, epoch_order(KEY, 0, 1000))
    assert not np.array_equal(order, np.arange(1000))
    assert not np.array_equal(order, epoch_order(KEY, 1, 1000))
    assert not np.array_equal(order, epoch_order(jax.random.key(4), 0, 1000))


def test_order_of_a_traced_epoch():
    traced = jax.jit(epoch_order, static_argnums=2)(KEY, jnp.int32(5), 100)
    np.testing.assert_array_equal(traced, epoch_order(KEY, 5, 100))


def test_order_stays_int32(x64):
    assert epoch_order(KEY, 0, 9).dtype == jnp.int32


def test_batches_follow_the_order():
    split, data = _split(), _data()
    order = epoch_order(KEY, 0, N)
    batch = jax.jit(batch_at, static_argnums=3)
    for index in range(batches_per_epoch(N, 3)):
        images, labels = batch(data, order, index, 3)
        chosen = np.asarray(order)[3 * index : 3 * index + 3]
        np.testing.assert_array_equal(images, split.images[chosen])
        np.testing.assert_array_equal(labels, split.labels[chosen])
        assert (images.dtype, labels.dtype) == (jnp.uint8, jnp.int32)


def test_an_epoch_in_one_scan_meets_every_example_once():
    data = _data(12)

    def body(_, index):
        return None, batch_at(data, epoch_order(KEY, 2, 12), index, 4)[1]

    _, labels = jax.jit(lambda: jax.lax.scan(body, None, jnp.arange(3)))()
    np.testing.assert_array_equal(np.sort(labels.ravel()), data.labels)


@pytest.mark.parametrize(("n", "batch_size", "count"), [(10, 3, 3), (10, 5, 2), (10, 10, 1)])
def test_the_remainder_is_dropped(n, batch_size, count):
    assert batches_per_epoch(n, batch_size) == count


@pytest.mark.parametrize("batch_size", [11, 0, -1])
def test_a_batch_that_cannot_be_drawn(batch_size):
    with pytest.raises(UserError, match=f"a batch of {batch_size} .* from 1 to 10"):
        batches_per_epoch(10, batch_size)


@pytest.mark.parametrize("batch_size", [1, 3, 5, 10, 16])
def test_eval_batches_hold_the_split_in_order_and_zeros(batch_size):
    split = _split()
    batches = jax.jit(eval_batches, static_argnums=1)(_data(), batch_size)
    k = -(-N // batch_size)
    assert batches.images.shape == (k, batch_size, 4, 5, 3)
    assert batches.images.dtype == jnp.uint8
    assert batches.mask.sum() == N
    mask = np.asarray(batches.mask)
    np.testing.assert_array_equal(np.asarray(batches.images)[mask], split.images)
    np.testing.assert_array_equal(np.asarray(batches.labels)[mask], split.labels)
    assert not np.asarray(batches.images)[~mask].any()
    assert mask.ravel()[:N].all()


@pytest.mark.parametrize("batch_size", [3, 5, 64])
def test_a_masked_mean_is_exact_for_any_batch_size(batch_size):
    data = _data()

    @jax.jit
    def mean(data):
        def body(total, batch):
            return total + jnp.sum(batch.labels * batch.mask), None

        return jax.lax.scan(body, 0, eval_batches(data, batch_size))[0] / N

    assert mean(data) == 5.5
