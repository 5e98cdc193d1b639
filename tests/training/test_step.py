"""The training step on two devices, compared with one device and with explicit formulas."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from multipath_jax import create_model
from multipath_jax.config.keys import default_config
from multipath_jax.data import ResidentData, Split, mix
from multipath_jax.parallel.devices import make_mesh, replicated, split_batch
from multipath_jax.training import step as step_lib
from multipath_jax.training.metrics import zeros_like
from multipath_jax.training.optimizer import make_optimizer
from multipath_jax.training.sources import Resident
from multipath_jax.training.state import MIX, create_state

BATCH, EXAMPLES, CLASSES = 8, 44, 10


def data():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (EXAMPLES, 8, 8, 1), np.uint8)
    return ResidentData(
        jnp.asarray(images), jnp.asarray(rng.integers(0, CLASSES, EXAMPLES, np.int32))
    )


class Images:
    """A data set's pixel statistics, with the attributes that `make_prepare` reads."""

    mean, std = np.float32([0.5]), np.float32([0.25])

    @classmethod
    def statistics(cls, labels):
        return cls.mean, cls.std


@cache  # compiled once for all tests
def train_step(shift=1):
    optimizer = make_optimizer(default_config().optimizer, lambda _: 0.1)
    prepare = step_lib.make_prepare(Images, shift, flip=False)
    return step_lib.make_train_step(tiny.Tiny(), optimizer, prepare)


@cache
def _fresh():
    optimizer = make_optimizer(default_config().optimizer, lambda _: 0.1)
    return jax.device_get(jax.jit(partial(create_state, tiny.Tiny(), optimizer, (8, 8, 1), 0))())


def fresh():
    """The initial state, in new arrays at every call, because runners donate them."""
    return jax.tree.map(jnp.array, _fresh())


def first_batch():
    return step_lib.Batch(*(array[:BATCH] for array in data()))


def fresh_carry(sharding):
    state = fresh()
    _, metrics = jax.eval_shape(train_step(), state, first_batch())
    return jax.device_put(step_lib.Carry(state, zeros_like(metrics)), sharding)


def runner(mesh, loop):
    source = Resident(Split(*jax.device_get(data())), BATCH, mesh)
    return step_lib.Runner(train_step(), source, replicated(mesh), loop)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def assert_close(a, b, tolerance):
    close = partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance)
    jax.tree.map(close, a, b)


def test_a_step_descends_the_gradient_of_the_cross_entropy():
    state, batch, step = fresh(), first_batch(), train_step(shift=0)
    after, metrics = step(state, batch)
    images = (batch.images / 255 - Images.mean) / Images.std

    def loss(params):
        variables = {"params": params, **state.collections}
        logits, updates = tiny.Tiny().apply(variables, images, train=True, mutable=["batch_stats"])
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
        return entropy.mean(), (logits, updates)

    gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, (logits, updates)), grads = gradient(state.params)
    # float32 rounding: the same sums are compiled differently.
    for name in ("conv", "head"):
        before = state.params[name]
        decay = 5e-4 * before["kernel"]
        expected = before["kernel"] - 0.1 * (grads[name]["kernel"] + decay)
        np.testing.assert_allclose(after.params[name]["kernel"], expected, atol=1e-6)
        expected = before["bias"] - 0.1 * grads[name]["bias"]
        np.testing.assert_allclose(after.params[name]["bias"], expected, atol=1e-6)
    assert_close(after.collections, dict(updates), 1e-6)
    found = metrics.compute()
    assert float(found["loss"]) == pytest.approx(float(value), rel=1e-5)
    assert float(found["error"]) == np.mean(logits.argmax(-1) != batch.labels)
    assert found["routing"].keys() == {
        *(f"router_1/{name}" for name in ("entropy", "share_1", "share_2")),
        *(f"router_2/{name}" for name in ("entropy", "share_1", "share_2", "share_3")),
    }
    assert after.step == 1


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("BaseCNN-2-CC", {}),
        ("NDDR-CNN2-shortcut", {}),
        ("Cr-Stitch2", {}),
        ("CapsNet", {}),
        pytest.param("ResNet8-2-CP", {}, marks=pytest.mark.slow),
        pytest.param("ConvNet-AIG", {"depth": 8}, marks=pytest.mark.slow),
        pytest.param("BlockDrop", {"blocks": 1}, marks=pytest.mark.slow),
        pytest.param("HighwayNet", {}, marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("x64")
def test_no_step_changes_a_type_with_64_bits(name, options):
    """Parameters stay float32, and the types of a carry must not change in a loop on the device."""
    model = create_model(name, **options)
    optimizer = make_optimizer(default_config().optimizer, lambda step: 0.1 / (1 + step))
    prepare = step_lib.make_prepare(Images, 1, flip=True)
    step = step_lib.make_train_step(model, optimizer, prepare, ema=0.9)
    create = partial(create_state, model, optimizer, (28, 28, 1), 0, averaged=True)
    state = jax.eval_shape(create)
    images, labels = np.zeros((BATCH, 28, 28, 1), np.uint8), np.zeros(BATCH, np.int32)
    after, metrics = jax.eval_shape(step, state, step_lib.Batch(images, labels))

    def types(tree):
        return jax.tree.map(lambda leaf: leaf.dtype, tree)

    assert types(after) == types(state)
    assert set(jax.tree.leaves(types(state.weights))) == {jnp.dtype("float32")}
    merged = jax.eval_shape(lambda metrics: metrics.merge(metrics), metrics)
    assert types(merged) == types(metrics)


def test_augmentation_follows_the_step():
    state, batch, step = fresh(), first_batch(), train_step()
    same, _ = step(state, batch)
    again, _ = step(state, batch)
    assert_equal(same, again)
    # The state differs only in its step, so the gradient differs because of other random numbers.
    other, _ = step(state.replace(step=jnp.int32(1)), batch)
    assert not np.array_equal(same.params["conv"]["kernel"], other.params["conv"]["kernel"])


def test_two_devices_compute_what_one_does():
    """BatchNorm uses statistics of the whole batch, and the augmentation is the same."""
    mesh = make_mesh(default_config())
    one = fresh_carry(jax.devices()[0])
    for _ in range(3):
        state, metrics = train_step()(one.state, first_batch())
        one = step_lib.Carry(state, one.metrics.merge(metrics))
    step = train_step()
    two = fresh_carry(replicated(mesh))
    batch = jax.device_put(first_batch(), split_batch(mesh))
    assert len(batch.images.addressable_shards) == 2
    for _ in range(3):
        state, metrics = step(two.state, batch)
        two = step_lib.Carry(state, two.metrics.merge(metrics))
    # Sums over the batch have another order: a few float32 rounding errors (6e-8) in three steps.
    assert_close(two.state.params, one.state.params, 1e-5)
    assert_close(two.state.collections, one.state.collections, 1e-5)
    assert_close(two.metrics.loss, one.metrics.loss, 1e-5)


@pytest.mark.parametrize("loop", [False, True])
def test_no_result_depends_on_where_a_call_begins(loop):
    mesh = make_mesh(default_config())
    run = runner(mesh, loop)
    whole = run(fresh_carry(replicated(mesh)), 0, 5)
    setup, step = fresh_carry(replicated(mesh)), 0
    for count in (1, 3, 1):
        setup = run(setup, step, count)
        step += count
    assert whole.state.step == 5
    assert_equal(setup, whole)


def test_a_loop_on_the_device_takes_the_same_steps():
    mesh = make_mesh(default_config())
    looped, stepped = (
        runner(mesh, loop)(fresh_carry(replicated(mesh)), 0, 5) for loop in (True, False)
    )
    # In two programs, XLA adds the same numbers in another order.
    assert_close(looped.state.params, stepped.state.params, 1e-5)
    assert_equal(looped.state.step, stepped.state.step)
    assert_equal(looped.metrics.error, stepped.metrics.error)


def test_a_step_on_mixed_images_descends_the_mixed_loss():
    """Compares with the explicit gradient; the error is also weighted by the shares."""
    state, batch = fresh(), first_batch()
    optimizer = make_optimizer(default_config().optimizer, lambda _: 0.1)
    prepare = step_lib.make_prepare(Images, shift=0, flip=False)
    step = step_lib.make_train_step(tiny.Tiny(), optimizer, prepare, mixup=1.0, cutmix=1.0)
    after, metrics = step(state, batch)
    images = (batch.images / 255 - Images.mean) / Images.std
    mixing = jax.jit(partial(mix, mixup=1.0, cutmix=1.0))
    images, mixed = mixing(state.step_key(MIX), images, batch.labels)

    def loss(params):
        variables = {"params": params, **state.collections}
        logits, _ = tiny.Tiny().apply(variables, images, train=True, mutable=["batch_stats"])
        targets = mixed.share[:, None] * jax.nn.one_hot(mixed.labels, CLASSES)
        targets += (1 - mixed.share)[:, None] * jax.nn.one_hot(mixed.others, CLASSES)
        return optax.softmax_cross_entropy(logits, targets).mean(), (logits, targets)

    gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, (logits, targets)), grads = gradient(state.params)
    before = state.params["head"]["kernel"]
    expected = before - 0.1 * (grads["head"]["kernel"] + 5e-4 * before)
    # float32 rounding: the same sums are compiled differently.
    np.testing.assert_allclose(after.params["head"]["kernel"], expected, atol=1e-6)
    found = metrics.compute()
    assert float(found["loss"]) == pytest.approx(float(value), rel=1e-5)
    right = np.take_along_axis(np.asarray(targets), np.asarray(logits).argmax(-1)[:, None], 1)
    assert float(found["error"]) == pytest.approx(1 - right.mean(), abs=1e-6)
    assert 0 < float(mixed.share.min()) < 1


def test_mirrors_alternate_with_the_epoch_not_with_the_step():
    """With four steps per epoch, steps 0 and 3 flip the same images, steps 4 and 7 the others."""
    prepare = jax.jit(step_lib.make_prepare(Images, shift=0, flip=True, alternate=4))
    state, batch = fresh(), step_lib.Batch(*data())
    images = batch.images

    def prepared(step):
        return np.asarray(prepare(state.replace(step=jnp.int32(step)), batch))

    first, second = prepared(0), prepared(4)
    np.testing.assert_array_equal(prepared(3), first)
    np.testing.assert_array_equal(prepared(7), second)
    np.testing.assert_array_equal(prepared(8), first)
    np.testing.assert_array_equal(second, first[:, :, ::-1])
    normal = (np.asarray(images) / np.float32(255) - Images.mean) / Images.std
    flipped = [not np.allclose(a, b, atol=1e-6) for a, b in zip(first, normal, strict=True)]
    assert 10 < sum(flipped) < 34  # 22 of 44 expected; 12 off is 3.6 standard deviations
