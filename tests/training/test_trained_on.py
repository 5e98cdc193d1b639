"""A run keeps a description of its data: other data are refused, moved data are accepted."""

import json
import os
import pathlib
import re
import shutil
import sys
import types

import numpy as np
import pytest
import tiny
from workdirs import lines

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "data"))
import photos

from multipath_jax import checkpoints as ckpt
from multipath_jax import main, trials
from multipath_jax.config.keys import read_config
from multipath_jax.errors import UserError
from multipath_jax.runs import load_run
from multipath_jax.trainer import Trainer, train
from multipath_jax.utils import claims

pytestmark = pytest.mark.usefixtures("tiny_by_name")
PICTURES = {"train": 18, "test": 12}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of images of six classes, with splits for training and test."""
    folder = tmp_path_factory.mktemp("pictures")
    for seed, (split, count) in enumerate(PICTURES.items()):
        for number, row in enumerate(photos.rows(count, seed=seed)):
            path = folder / split / photos.NAMES[row["label"]] / f"{number:02}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(row["image"])
    return folder


@pytest.fixture
def folder(pictures, tmp_path):
    """A copy of ``pictures``, which tests may change."""
    return pathlib.Path(shutil.copytree(pictures, tmp_path / "mine"))


def recipe(folder, **changes):
    own = tiny.NAMED | {
        "dataset.source": os.fspath(folder),
        "dataset.size": 16,
        "dataset.shift": 0,
        "dataset.workers": 0,
        "batch_size": 6,
        "train_for": "4 steps",
        "schedule.boundaries": "",
        "schedule.learning_rate": 0.05,
    }
    return tiny.tiny_config(folder.parent, **own | changes)


@pytest.fixture(scope="module")
def run(tiny_by_name, pictures, tmp_path_factory):
    """The workdir of a run that was trained on ``pictures``."""
    workdir = tmp_path_factory.mktemp("run")
    train(recipe(pictures), workdir)
    return workdir


@pytest.fixture
def trained(run, folder, workdir):
    """A copy of ``run``, with ``folder`` as its data set."""
    shutil.copytree(run, workdir)
    ckpt.write_config(workdir, recipe(folder))
    return workdir


def kept(workdir):
    """All files of a run by path, without the lock file, which names its last owner."""
    paths = pathlib.Path(workdir).rglob("*")
    return {p: p.read_bytes() for p in paths if p.is_file() and p.name != claims.LOCK_FILE}


def one_more_class(folder):
    shutil.copytree(folder / "train" / "red", folder / "train" / "ant")


def a_class_renamed(folder):
    for split in PICTURES:
        (folder / split / "red").rename(folder / split / "purple")


def a_picture_less(folder):
    next((folder / "train" / "red").iterdir()).unlink()


def another_picture(folder):
    path = next((folder / "train" / "red").iterdir())
    path.write_bytes(photos.jpeg(99, 0, 50, 50))


CHANGES = {
    one_more_class: r"classes added: ant; 18 -> 21 training images",
    a_class_renamed: r"class names: red -> purple",
    a_picture_less: r"18 -> 17 training images",
    another_picture: r"different training images: \w+ -> \w+",
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_data_are_refused_by_name_and_nothing_is_touched(folder, trained, change):
    before, answers = kept(trained), load_run(trained).description.class_names
    change(folder)
    with pytest.raises(UserError, match=rf"has a run on other data \({CHANGES[change]}") as caught:
        train(recipe(folder), trained)
    assert "\n" not in str(caught.value)
    assert kept(trained) == before
    assert load_run(trained).description.class_names == answers


def test_other_data_for_one_trial_are_refused_before_any_begins(folder, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "trials" / "seed_1")
    config = json.loads((trained / ckpt.CONFIG_FILE).read_text()) | {"seed": 1}
    (tmp_path / "trials" / "seed_1" / ckpt.CONFIG_FILE).write_text(json.dumps(config))
    a_picture_less(folder)
    with pytest.raises(UserError, match="18 -> 17 training images"):
        trials.train_trials(recipe(folder, trials=2), tmp_path / "trials")
    assert not (tmp_path / "trials" / "seed_0").exists()


def test_other_statistics_are_refused(folder, trained):
    path = trained / ckpt.DATASET_FILE
    described = json.loads(path.read_text()) | {"mean": [0.5, 0.5, 0.5]}
    path.write_text(json.dumps(described))
    with pytest.raises(
        UserError, match=r"mean of the training pixels: 0\.5000, 0\.5000, 0\.5000 -> 0"
    ):
        train(recipe(folder), trained)


def test_other_test_images_are_said_and_measured(folder, trained, capsys):
    before = kept(trained)
    next((folder / "test" / "red").iterdir()).unlink()
    train(recipe(folder), trained)
    assert (
        "the test images have changed since the run began (12 -> 11 evaluation images)"
        in capsys.readouterr().out
    )
    assert kept(trained)[trained / ckpt.DATASET_FILE] == before[trained / ckpt.DATASET_FILE]


def test_a_run_whose_description_is_gone_is_refused(folder, trained):
    (trained / ckpt.DATASET_FILE).unlink()
    for use in (lambda: train(recipe(folder), trained), lambda: load_run(trained)):
        with pytest.raises(UserError, match=r"dataset.json does not say .*No such file") as caught:
            use()
        assert "\n" not in str(caught.value)


def test_a_folder_that_has_moved_is_named_anew(folder, tmp_path, workdir, monkeypatch):
    """The folder is given first relative to its parent, then relative to the home folder."""
    monkeypatch.chdir(tmp_path)
    config = recipe(folder, **{"dataset.source": "mine", "train_for": "6 steps"})
    stop = iter([False, False, True])
    stopped = Trainer(config).fit(workdir, should_stop=lambda: next(stop), steps_per_call=1)
    assert stopped.step == 3
    assert read_config(workdir / ckpt.CONFIG_FILE).dataset.source == os.fspath(folder)
    monkeypatch.setenv("HOME", os.fspath(tmp_path))
    folder.rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    with pytest.raises(UserError, match="mine is not a folder"):
        _ = load_run(workdir).dataset
    config.dataset.source = "~/moved"
    assert train(config, workdir).finished
    assert read_config(workdir / ckpt.CONFIG_FILE).dataset.source == os.fspath(tmp_path / "moved")
    monkeypatch.chdir("/")
    assert load_run(workdir).evaluate()["error"] == lines(workdir)[-1]["test/error"]


# Evaluation


def test_evaluation_normalizes_as_training_did(folder, trained):
    path = trained / ckpt.DATASET_FILE
    described = json.loads(path.read_text()) | {"mean": [0.9, 0.1, 0.2], "std": [0.4, 0.5, 0.6]}
    path.write_text(json.dumps(described))
    run = load_run(trained)
    test = run.test()
    logits = np.float64(run.logits(test.images))
    losses = np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(test)), test.labels]
    found = run.evaluate()["loss"]
    assert found == pytest.approx(losses.mean(), rel=1e-5)  # float32
    own = lines(trained)[-1]["test/loss"]
    assert abs(found - own) > 1e-3  # with the statistics of the folder


def test_evaluation_is_of_the_images_that_there_are_now(folder, trained):
    assert load_run(trained).other_images == []
    shutil.rmtree(folder / "test" / "red")
    run = load_run(trained)
    assert run.other_images == ["12 -> 10 evaluation images"]
    assert len(run.test()) == 10
    assert "error" in run.evaluate()


@pytest.mark.parametrize("where", ["mine", "moved"])
def test_the_program_says_that_it_evaluates_other_images(
    folder, trained, tmp_path, monkeypatch, capsys, where
):
    """Evaluates on the folder in the stored config, or on one in a new config."""
    shutil.rmtree(folder / "test" / "red")
    folder.rename(tmp_path / where)
    config = None if where == "mine" else recipe(tmp_path / where)
    for flag, value in {
        "WORKDIR": os.fspath(trained),
        "CHECKPOINT": "best",
        "TEST_SPLIT": False,
    }.items():
        monkeypatch.setattr(main, flag, types.SimpleNamespace(value=value))
    monkeypatch.setattr(main.config_flags, "CONFIG", types.SimpleNamespace(value=config))
    assert main._evaluate() == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"best checkpoint of {trained}, step 4, {tmp_path / where} test split"
    assert said[1] == "the data differ from those of training: 12 -> 10 evaluation images"
    assert any(re.fullmatch(r"error \d+\.\d\d %", line) for line in said)


@pytest.mark.parametrize("change", [one_more_class, a_class_renamed])
def test_evaluation_refuses_other_classes(folder, trained, change):
    change(folder)
    with pytest.raises(UserError, match=r"on other data than .*mine now has \(class") as caught:
        load_run(trained).evaluate()
    assert "\n" not in str(caught.value)


def test_evaluation_refuses_images_of_another_shape(folder, trained):
    run = load_run(trained)
    run.config.dataset.size = 20
    with pytest.raises(UserError, match="16x16x3 -> 20x20x3"):
        run.evaluate()


def test_evaluation_needs_nothing_of_training(folder, trained):
    """Batch sizes and meshes that training would refuse have no effect."""
    expected = load_run(trained).evaluate()
    run = load_run(trained)
    run.config.update_from_flattened_dict({"batch_size": 999, "mesh.path": 4, "mesh.data": 7})
    assert run.evaluate() == expected
    assert expected["error"] == lines(trained)[-1]["test/error"]
