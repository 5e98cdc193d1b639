"""Loading a trained network from its workdir."""

import argparse
import contextlib
import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from damage import empty, flip, remove

import multipath_jax
from multipath_jax import checkpoints as ckpt
from multipath_jax.config.keys import read_config
from multipath_jax.data import describe, load_dataset, normalize
from multipath_jax.data.description import read_description, to_json
from multipath_jax.errors import UserError
from multipath_jax.figures.inputs import FigureInputs
from multipath_jax.runs import load_run
from multipath_jax.training.setup import Setup


@pytest.fixture
def copy(digits_run, tmp_path):
    """A copy of the run, which tests may change."""
    return pathlib.Path(shutil.copytree(digits_run, tmp_path / "run"))


def rename_dataset(workdir, name):
    path = workdir / ckpt.CONFIG_FILE
    config = json.loads(path.read_text())
    config["dataset"]["name"] = name
    path.write_text(json.dumps(config))


def test_it_has_the_weights_that_training_goes_on_from(digits_run):
    like = Setup(read_config(digits_run / ckpt.CONFIG_FILE)).abstract_carry
    with contextlib.closing(ckpt.open_existing(digits_run)) as checkpoints:
        expected = {step: checkpoints.restore(like, step).state.variables for step in (1, 2)}
    for which, step in {"best": 1, "latest": 2, 1: 1, "2": 2}.items():
        run = load_run(digits_run, which)
        jax.tree.map(np.testing.assert_array_equal, run.variables, expected[step])
        assert run.step == step


def test_it_answers_as_the_network_does_in_evaluation(digits_run):
    run = load_run(digits_run)
    images = jnp.asarray(run.dataset.test.images[:7])
    inputs = normalize(images, run.dataset.mean, run.dataset.std)
    expected = jax.jit(partial(run.model.apply, train=False))(run.variables, inputs)
    # Different programs round float32 differently.
    np.testing.assert_allclose(run.logits(images), expected, rtol=1e-4, atol=1e-5)
    assert expected.std(axis=0).max() > 1e-3  # logits differ between images


def test_pixels_of_another_type_are_refused(digits_run):
    run = load_run(digits_run)
    images = np.full((1, *run.description.image_shape), 255)
    with pytest.raises(UserError, match="is on uint8 pixels, got int32; pass images of type uint8"):
        run.logits(images)
    np.testing.assert_array_equal(run.prepare(images / 255), run.prepare(images.astype(np.uint8)))
    floats = dataclasses.replace(
        run, description=dataclasses.replace(run.description, dtype="float32")
    )
    with pytest.raises(UserError, match="is on float32 pixels, got uint8"):
        floats.logits(images.astype(np.uint8))


@pytest.mark.parametrize("shape", [(8, 8, 1), (2, 8, 8, 3), (2, 8, 8)])
def test_images_of_another_shape_are_refused(digits_run, shape, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users do not have its checks
    with pytest.raises(UserError, match=r"is on images \[b h w 1\], got the shape \("):
        load_run(digits_run).logits(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("dtype", ["float17", "int8"])
def test_other_types_of_the_computation_are_refused(digits_run, dtype):
    with pytest.raises(UserError, match=f"dtype='{dtype}' must be one of auto, float32, bfloat16"):
        load_run(digits_run, dtype=dtype)


def test_test_images_by_number(digits_run):
    run = load_run(digits_run)
    test, found = run.dataset.test, run.test_images(np.array([5, 2]))
    np.testing.assert_array_equal(found.images, test.images[[5, 2]])
    np.testing.assert_array_equal(found.labels, test.labels[[5, 2]])


@pytest.mark.parametrize("limit", [0, -5])
def test_a_number_of_test_images_is_at_least_one(digits_run, limit):
    with pytest.raises(UserError, match=f"limit={limit} must be at least 1"):
        load_run(digits_run).test(limit)


def test_held_out_images_that_were_passed_are_not_the_test_split(digits_run):
    data = load_dataset("digits", digits_run.parent / "tfds", holdout=100)
    run = load_run(digits_run, dataset=data)
    assert FigureInputs(run, argparse.Namespace()).kind == "held-out"
    with pytest.raises(UserError, match=r"digits passed to .* has held-out images"):
        run.on_test_split()
    assert FigureInputs(load_run(digits_run), argparse.Namespace()).kind == "test"


def test_it_needs_no_data_set(copy):
    rename_dataset(copy, "gone")
    run = load_run(copy)
    assert run.description.class_names == tuple("0123456789")
    assert run.logits(np.zeros((2, *run.description.image_shape), np.uint8)).shape == (2, 10)
    with pytest.raises(UserError, match="unknown data set 'gone'"):
        _ = run.dataset


def test_a_description_comes_back_to_the_bit(digits_run, tmp_path):
    described = describe(load_dataset("digits", digits_run.parent / "tfds"))
    (tmp_path / "dataset.json").write_text(to_json(described))
    found = read_description(tmp_path / "dataset.json")
    assert found.mean.dtype == found.std.dtype == np.float32
    assert (found.mean, found.std) == (described.mean, described.std)
    assert found.image_shape == (8, 8, 1)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"name": "digits"}'])
def test_a_broken_description_is_said_to_be_one(copy, text):
    (copy / ckpt.DATASET_FILE).write_text(text)
    with pytest.raises(UserError, match=r"dataset.json does not say what .*; restore") as caught:
        load_run(copy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "step"),
    [
        (flip, "1"),
        pytest.param(flip, "2", marks=pytest.mark.slow),
        (empty, "2"),
        pytest.param(remove, "2", marks=pytest.mark.slow),
    ],
)
def test_a_damaged_checkpoint_is_said_to_be_one(copy, damage, step):
    damage(copy / ckpt.FOLDER / step)
    with pytest.raises(UserError, match=rf"checkpoint of step {step} is damaged") as caught:
        load_run(copy, step)
    assert "\n" not in str(caught.value)


def test_the_others_can_still_be_loaded(copy):
    flip(copy / ckpt.FOLDER / "2")
    assert load_run(copy).step == 1


def test_what_is_not_there_is_said(digits_run, tmp_path):
    with pytest.raises(UserError, match="no checkpoint '7'; choose best, latest or 1 or 2"):
        load_run(digits_run, "7")
    with pytest.raises(UserError, match="has no checkpoint"):
        load_run(tmp_path / "nowhere")
    shutil.copytree(digits_run, tmp_path / "trials" / "seed_0")
    with pytest.raises(UserError, match="no checkpoint; its trials do: seed_0"):
        load_run(tmp_path / "trials")


def test_the_package_imports_neither_data_sets_nor_checkpoints_before_they_are_asked_for():
    code = (
        "import sys, multipath_jax\n"
        "heavy = {'orbax', 'tensorflow_datasets', 'matplotlib', 'sklearn'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert multipath_jax.load_run is load_run
    with pytest.raises(AttributeError, match="load_rum"):
        _ = multipath_jax.load_rum
