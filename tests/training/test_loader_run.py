"""End-to-end training on images that are decoded on demand, also with interruptions."""

import os
import pathlib
import sys
from functools import partial

import numpy as np
import pytest
import tiny
from programs import Program
from workdirs import assert_same_end, lines

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "data"))
import photos

from multipath_jax import checkpoints as ckpt
from multipath_jax import trainer, trials
from multipath_jax.data import open_encoded
from multipath_jax.errors import UserError
from multipath_jax.runs import load_run
from multipath_jax.trainer import Trainer, train
from multipath_jax.training.setup import Setup
from multipath_jax.training.sources import Encoded

TRAIN, TEST, BATCH, TOTAL = 42, 13, 8, 30  # six epochs of five batches

RECIPE = tiny.NAMED | {
    "dataset.name": "photos",
    "dataset.size": 32,
    "dataset.crop": 24,
    "dataset.flip": True,
    "dataset.shift": 0,
    "dataset.workers": 0,
    "dataset.ten_crop": True,
    "batch_size": BATCH,
    "eval_batch_size": 6,
    "train_for": f"{TOTAL} steps",
    "schedule.boundaries": "",
    "schedule.learning_rate": 0.05,
    "log_every": "1 step",
    "eval_every": "3 epochs",
    "checkpoint_every": "7 steps",
}

pytestmark = pytest.mark.usefixtures("tiny_by_name")


@pytest.fixture(scope="module")
def photo_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    photos.prepare(folder, photos.rows(TRAIN), photos.rows(TEST, seed=1))
    return folder


def recipe(folder, **changes):
    return tiny.tiny_config(folder, **RECIPE | changes)


@pytest.fixture(scope="module")
def undisturbed(tiny_by_name, photo_dir, tmp_path_factory):
    """The workdir, config and result of an uninterrupted run."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    config = recipe(photo_dir)
    return workdir, config, tiny.train(config, workdir)


def test_a_run_learns_and_measures_both_ways(undisturbed):
    workdir, config, result = undisturbed
    assert isinstance(tiny.setup_of(config).source, Encoded)
    logged = lines(workdir)
    losses = [line["train/loss"] for line in logged if "train/loss" in line]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    errors = {"error", "top5_error", "ten_crop_error", "ten_crop_top5_error"}
    assert result.test.keys() == {"loss", *errors}
    # Ten crops take ten times as long, so they are only evaluated at the end of training.
    assert [line["step"] for line in logged if "test/error" in line] == [15, TOTAL]
    assert [line["step"] for line in logged if "test/ten_crop_error" in line] == [TOTAL]


def test_what_comes_after_training_sees_the_center_crops(undisturbed):
    workdir, config, _ = undisturbed
    run = load_run(workdir)
    assert run.description.image_shape == (24, 24, 3)
    split = run.test(limit=3)
    whole = tiny.setup_of(config).dataset.test.load(np.arange(3))
    np.testing.assert_array_equal(split.images, whole.images[:, 4:28, 4:28])
    np.testing.assert_array_equal(split.labels, whole.labels)
    assert run.logits(split.images).shape == (3, run.description.num_classes)


def test_a_run_that_stops_and_goes_on_is_the_same_run(undisturbed, photo_dir, tmp_path):
    """Stops in the middle of an epoch, between two checkpoints."""
    whole, config, result = undisturbed
    fit = partial(tiny.train, config, tmp_path, steps_per_call=4)
    assert fit(should_stop=lambda: True).step == 1  # the first logged step
    calls = iter([False] * 6 + [True])
    assert fit(should_stop=lambda: next(calls)).step == 8
    assert fit().test == result.test
    assert_same_end(tmp_path, whole)


def program(workdir, folder, *flags, **changes):
    """Starts the same run in a subprocess."""
    arguments = [f"--workdir={workdir}", *flags]
    arguments += [f"--config={pathlib.Path(tiny.__file__).parents[2] / 'configs' / 'digits.py'}"]
    own = {"dataset.data_dir": folder, "tensorboard": "off"} | RECIPE | changes
    arguments += [f"--config.{key}={value}" for key, value in own.items()]
    return Program(tiny.__file__, *arguments)


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_end(undisturbed, photo_dir, tmp_path):
    """Kills a run with a worker process in the middle of an epoch; resumes without workers."""
    whole, config, _ = undisturbed
    changes = {"dataset.workers": 1}
    run = program(tmp_path, photo_dir, **changes)
    for line in run.stdout:
        if line.startswith("step 18/"):  # checkpoint 7 has been written, perhaps also 14
            break
    else:
        raise AssertionError("the run did not get to step 18")
    run.kill()
    run.end(timeout=60)  # until all processes with the pipe have ended, also workers
    assert 0 < ckpt.open_existing(tmp_path).latest < TOTAL
    tiny.train(config, tmp_path)
    assert_same_end(tmp_path, whole)


def test_evaluation_prints_what_the_run_found(undisturbed, photo_dir):
    whole, _, result = undisturbed
    run = program(whole, photo_dir, "--mode=eval", "--checkpoint=latest")
    status, said = run.end(timeout=120)
    assert status == 0, said
    for name in ("error", "top5_error", "ten_crop_error", "ten_crop_top5_error"):
        assert f"\n{name.replace('_', ' ')} {result.test[name]:.2f} %" in said


def test_a_bad_record_stops_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr("multipath_jax.data.datasets._SAMPLE", 5)  # without the bad record
    rows = photos.rows(TRAIN)
    rows[7]["image"] = rows[7]["image"][:300]
    # As in a large data set, the statistics' sample misses the bad record; training finds it.
    photos.prepare(tmp_path, rows, photos.rows(TEST))
    with pytest.raises(UserError, match="record 7 of 'train'"):
        train(recipe(tmp_path), tmp_path / "run")


@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_what_a_folder_holds_is_said_once_and_its_names_are_kept(tmp_path, capsys, count):
    source, strange = tmp_path / "images", os.fsdecode(b"caf\xe9")
    for label, name in enumerate(("$x$", strange)):
        (source / name).mkdir(parents=True)
        for index in range(5):
            (source / name / f"{index}.jfif").write_bytes(photos.jpeg(index, label))
    (source / ".hidden.jpg").write_bytes(b"")
    changes = {"dataset.source": str(source), "train_for": "1 step", "eval_every": "1 step"}
    changes["dataset.ten_crop"] = False
    config = recipe("nowhere", trials=count, **changes)
    workdir = tmp_path / "run"
    (trials.train_trials if count > 1 else train)(config, workdir)
    said = capsys.readouterr().out.splitlines()
    assert said[:3] == [
        rf"{source}: 8 training and 2 test images of 2 classes: $x$, caf\xe9",
        "held out to test on: the second of every 10 images of a class",
        "left out: hidden images (1)",
    ]
    assert not any("held out" in line for line in said[3:])
    run = load_run(workdir / f"seed_{config.seed}" if count > 1 else workdir)
    assert run.description.class_names == ("$x$", strange)


def test_the_size_of_given_images_must_be_that_of_the_config(photo_dir):
    given = open_encoded("photos", photo_dir, 32)
    config = trainer._with_names(recipe(photo_dir), None, given, None, None)
    assert (config.dataset.name, config.dataset.size) == ("own:photos", 32)
    with pytest.raises(UserError, match=r"dataset.size=16 does not rescale .* of 32x32x3; use"):
        Trainer(recipe(photo_dir, **{"dataset.size": 16}), dataset=given)


def test_too_large_a_crop_is_refused(photo_dir):
    with pytest.raises(UserError, match=r"crop=33 is larger than the images of 32x32 pixels"):
        Setup(recipe(photo_dir, **{"dataset.crop": 33}))


@pytest.mark.slow
def test_images_in_memory_are_cropped_too(data_dir, tmp_path):
    config = tiny.tiny_config(data_dir, **tiny.NAMED, **{"dataset.crop": 6, "train_for": "3 steps"})
    config.schedule.boundaries = ""
    setup = Setup(config)
    assert setup.image_shape == (6, 6, 1)
    assert train(config, tmp_path).finished


def test_a_run_that_fails_ends_its_workers(photo_dir, tmp_path):
    import multiprocessing

    def fail(*_):
        assert multiprocessing.active_children()
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        Trainer(recipe(photo_dir, **{"dataset.workers": 1}), hooks=[fail]).fit(tmp_path)
    assert not multiprocessing.active_children()
    assert [line["step"] for line in lines(tmp_path)] == [1]
