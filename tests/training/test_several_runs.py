"""Training on several data sets: batches, losses, evaluation, resuming, and errors."""

import pathlib
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import several
import tiny
from workdirs import assert_same_end, final, lines

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "data"))
import toy_datasets

from multipath_jax import data
from multipath_jax.config.keys import default_config, validate
from multipath_jax.errors import UserError
from multipath_jax.layers.own_statistics import COLLECTION, of_set
from multipath_jax.trainer import Trainer
from multipath_jax.training.setup import Setup
from multipath_jax.training.step import Batch, make_prepare


@pytest.fixture(scope="module", autouse=True)
def small_by_name(tiny_by_name):
    with several.small_by_name():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    toy_datasets.prepare_two(folder)
    return folder


def recipe(folder, **changes):
    """Two epochs of seven steps: discrete routers, statistics per data set, label smoothing."""
    return tiny.tiny_config(
        folder,
        **{
            "model.name": "Small-2-CC",
            "model.options": "k=1,kept=factor,estimator=none",
            "dataset.name": "toy+gray",
            "dataset.proportions": "1, 2",
            "dataset.own_statistics": True,
            "dataset.flip": True,
            "dataset.alternate_flip": True,
            "label_smoothing": 0.1,
            "ema": 0.5,
            "batch_size": 8,
            "train_for": "2 epochs",
            "schedule.learning_rate": 0.05,
            "schedule.boundaries": "",
            "eval_every": "1 epoch",
            "checkpoint_every": "3 steps",
        }
        | changes,
    )


@pytest.fixture(scope="module")
def setup(small_by_name, folder):
    return Setup(recipe(folder))


@pytest.fixture(scope="module")
def trained(small_by_name, folder, tmp_path_factory):
    """The workdir of an uninterrupted run."""
    workdir = tmp_path_factory.mktemp("several") / "run"
    Trainer(recipe(folder)).fit(workdir)
    return workdir


# Training


def test_batches_have_the_proportions(setup):
    carry = setup.fresh_carry(0)
    for step, given in enumerate(setup.source.batches(carry.state.rng, 0, 0)):
        labels = np.asarray(setup.source.batch(given, step).labels)
        assert 5 <= (labels >= 3).sum() <= 6  # 2/3 of 8


def test_every_image_is_normalized_by_its_data_set(setup):
    prepare = make_prepare(setup.dataset, shift=0, flip=False)
    at = np.array([41, 3, 59, 40])  # the first data set has 40 images
    images, labels = setup.dataset.train.images[at], setup.dataset.train.labels[at]
    batch = Batch(jnp.asarray(images), jnp.asarray(labels))
    found = prepare(setup.fresh_carry(0).state, batch)
    for image, number, normal in zip(images, (1, 0, 1, 1), found, strict=True):
        part = setup.dataset.parts[number]
        expected = (image / 255 - part.mean) / part.std
        np.testing.assert_allclose(normal, expected, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def batch(setup):
    """A batch of images of the second data set only."""
    train = setup.dataset.train
    return Batch(jnp.asarray(train.images[-8:]), jnp.asarray(train.labels[-8:]))


@pytest.fixture(scope="module")
def step(setup, batch):
    """The states before and after a step on ``batch``."""
    before = setup.fresh_carry(0).state
    return jax.device_get((before, setup.train_step(before, batch)[0]))


def test_other_heads_count_neither_in_the_loss_nor_in_the_error(setup, batch):
    state = setup.fresh_carry(0).state
    higher = jax.tree.map(jnp.copy, state.params)
    higher["dense"]["dense"]["bias"] += jnp.array([100.0] * 3 + [0.0] * 3)
    found = [setup.train_step(one, batch)[1] for one in (state, state.replace(params=higher))]
    first, second = (metrics.compute() for metrics in found)
    assert first["error"] == second["error"] < 1
    assert first["loss"] == second["loss"]


def test_a_head_gets_no_gradient_from_other_data_sets(step):
    before, after = (state.params["dense"]["dense"]["kernel"] for state in step)
    decay = 1 - 0.05 * 5e-4
    np.testing.assert_allclose(after[..., :3], decay * before[..., :3], rtol=1e-6)
    assert np.abs(after - decay * before)[..., 3:].max() > 1e-4


def test_statistics_are_of_the_images_of_one_data_set(step):
    for before, after in zip(
        *(jax.tree.leaves(s.collections[COLLECTION]) for s in step), strict=True
    ):
        np.testing.assert_array_equal(before[..., 0, :], after[..., 0, :])
        assert np.any(before[..., 1, :] != after[..., 1, :])


# Evaluation


def test_errors_are_logged_by_data_set(trained, setup):
    for line in (line for line in lines(trained) if "test/error" in line):
        for measure in ("loss", "error"):
            toy, gray = line[f"test/toy/{measure}"], line[f"test/gray/{measure}"]
            assert line[f"test/{measure}"] == pytest.approx((9 * toy + 6 * gray) / 15)
        assert "test/top5_error" not in line  # each data set has only three classes
    log = (trained / "train.log").read_text()
    each = f"toy {line['test/toy/error']:.2f} %, gray {line['test/gray/error']:.2f} %"
    assert f"test error {line['test/error']:.2f} % ({each})  " in log


def test_errors_are_those_of_the_own_heads_by_hand(trained, setup):
    weights = final(trained, setup).state.weights
    values = setup.evaluate(weights)
    apply = jax.jit(partial(setup.model.network.apply, train=False))
    for number, part in enumerate(setup.dataset.parts):
        images = (part.test.images / np.float32(255) - part.mean) / part.std
        logits = apply(of_set(weights, number), jnp.asarray(images))
        own = np.asarray(logits)[:, 3 * number : 3 * number + 3]
        error = 100 * np.mean(own.argmax(1) != part.test.labels)
        assert values[f"{part.name}/error"] == pytest.approx(error)
        logs = np.asarray(jax.nn.log_softmax(own))
        loss = -logs[np.arange(len(own)), part.test.labels].mean()
        assert values[f"{part.name}/loss"] == pytest.approx(loss, rel=1e-4)


# Resuming and devices


def test_a_run_that_was_stopped_ends_as_one_that_was_not(trained, folder, tmp_path):
    """Stops within an epoch, in which a data set is repeated; resumes from host memory."""
    for streamed, calls in ((False, 2), (True, 3), (False, 99)):
        should_stop = partial(next, iter([False] * calls + [True]))
        config = recipe(folder, **{"dataset.streamed": streamed})
        Trainer(config).fit(tmp_path / "run", should_stop=should_stop, steps_per_call=2)
    assert_same_end(tmp_path / "run", trained)


def test_two_devices_compute_what_one_does(setup):
    """Compares parameters, statistics and the moving average after three steps."""
    found = []
    for one in (setup, Setup(setup.config, on=jax.devices()[:1])):
        carry = one.runner(one.fresh_carry(0), 0, 3)
        found.append(jax.device_get((carry.state.variables, carry.state.average)))
    # float32 rounding: sums over two devices have another order.
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), *found)


def test_batches_are_accumulated(setup):
    """Traces a step, in which micro-batches get the data sets of their images."""
    found = Setup(recipe(setup.config.dataset.data_dir, accumulate=2)).abstract_carry
    assert jax.tree.map(jnp.shape, found.state) == jax.tree.map(
        jnp.shape, setup.abstract_carry.state
    )


def test_the_order_of_the_data_sets_is_part_of_the_run(trained, folder):
    with pytest.raises(UserError, match=r"dataset.name: 'toy.gray' -> 'gray.toy'"):
        Trainer(recipe(folder, **{"dataset.name": "gray+toy"})).fit(trained)


# Data sets from arrays, and other networks


def joined():
    def arrays(name, classes):
        images, labels = toy_datasets.random_images(16, (8, 8, 1)), np.arange(16) % classes
        return data.from_arrays(images, labels, images[:4], labels[:4], name=name)

    return data.join(arrays("a", 2), arrays("b", 3))


def test_arrays_and_a_network_of_ones_own():
    """Traces a step."""
    config = tiny.tiny_config("", batch_size=8)
    trainer = Trainer(config, model=tiny.Tiny(5), dataset=joined())
    assert trainer.config.dataset.name == "own:a+b"
    carry = trainer._parts.abstract_carry
    assert carry.state.params["head"]["kernel"].shape[-1] == 5


def test_one_normalization_may_be_given_for_all(folder):
    changes = {"dataset.mean": "0.5, 0.4, 0.3", "dataset.std": "0.2, 0.2, 0.1"}
    dataset = Setup(recipe(folder, **changes)).dataset
    np.testing.assert_allclose(dataset.mean, [[0.5, 0.4, 0.3]] * 2)
    np.testing.assert_allclose(dataset.parts[1].std, [0.2, 0.2, 0.1])


# Errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset.name": "digits+digits"}, "the data set digits is named twice"),
        ({"dataset.name": "digits+"}, "two or more names, such as cifar10.digits, got 'digits.'"),
        ({"dataset.name": "toy+none"}, "unknown data set 'none'"),
        ({"dataset.name": "toy+folder"}, "unknown data set 'folder'"),
        ({"dataset.size": 8}, "several data sets must be prepared ones .*; remove dataset.size"),
        ({"dataset.source": "x", "dataset.size": 8}, "remove dataset.source=x, or name one"),
        ({"dataset.proportions": "1"}, "dataset.proportions=1 must be positive numbers, one for"),
        ({"dataset.proportions": "1, -1"}, "dataset.proportions=1, -1 must be positive numbers"),
        ({"dataset.proportions": "a"}, "dataset.proportions='a' is not of the form"),
        ({"dataset.name": "toy"}, "dataset.proportions=1, 2 must be .*; dataset.name=toy"),
        ({"dataset.name": "toy", "dataset.proportions": ""}, "own_statistics=True needs several"),
        ({"mixup": 0.2}, "own_statistics=True needs images of one data set each; use mixup"),
        ({"mesh.path": 2}, "own_statistics=True is not supported for paths on several devices"),
        ({"model.name": "Tiny", "model.options": ""}, "with multipath_jax.layers.batch_norm; this"),
        ({"model.name": "CapsNet", "model.options": "", "label_smoothing": 0.0},
         "2 data sets need the cross-entropy or loss_fn"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_a_line(folder, changes, message):
    with pytest.raises(UserError, match=message) as error:
        Setup(recipe(folder, **changes))
    assert "\n" not in str(error.value)


def test_own_statistics_of_one_data_set_are_refused():
    changes = {"dataset.own_statistics": True, "dataset.name": "own:a", "batch_size": 8}
    config = tiny.tiny_config("", **changes)
    with pytest.raises(
        UserError, match=r"own_statistics=True needs several data sets; use data.join"
    ):
        Setup(config, joined().parts[0], model=tiny.Tiny(2))


def test_proportions_of_given_data_sets_are_those_of_the_join():
    config = tiny.tiny_config("", **{"dataset.proportions": "1, 1", "dataset.name": "a+b"})
    with pytest.raises(UserError, match=r"dataset.proportions=1, 1 cannot be used with dataset="):
        Trainer(config, model=tiny.Tiny(5), dataset=joined())


def test_a_name_with_a_plus_of_given_data_is_no_list_of_names():
    config = default_config()
    config.dataset.name, config.dataset.size = "own:a+b", 8
    validate(config)
