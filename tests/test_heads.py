"""Heads of a network that was trained on several data sets, each used as a run on one of them."""

import contextlib
import dataclasses
import json
import pathlib
import re
import sys
import types

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import several
import yaml
from command_line import refusal
from etils import epath
from PIL import Image
from weights import random_like

sys.path.insert(0, str(pathlib.Path(__file__).parent / "data"))
import toy_datasets

from multipath_jax import checkpoints as ckpt
from multipath_jax import export, main, pictures, predict, save_weights
from multipath_jax.card import Exported, model_card
from multipath_jax.config.keys import default_config
from multipath_jax.data import brought_to, load_several
from multipath_jax.errors import UserError
from multipath_jax.figures import __main__ as figures
from multipath_jax.layers import FromSets
from multipath_jax.metrics_file import METRICS_FILE
from multipath_jax.models.gathered import Gathered
from multipath_jax.runs import load_run
from multipath_jax.training.setup import Setup

HEADS = ("toy", "gray")


@pytest.fixture(scope="module", autouse=True)
def small_by_name():
    with several.small_by_name():
        yield


@pytest.fixture(scope="module")
def workdir(small_by_name, tmp_path_factory):
    """A workdir on two data sets with own statistics; its checkpoint has random weights."""
    folder = epath.Path(tmp_path_factory.mktemp("heads"))
    toy_datasets.prepare_two(folder / "tfds")
    config = default_config()
    config.model.name, config.model.options = "Small-2-CC", "k=1"
    config.dataset.name, config.dataset.data_dir = "toy+gray", str(folder / "tfds")
    config.dataset.own_statistics, config.batch_size = True, 8
    config.compilation_cache = ""
    setup, workdir = Setup(config), folder / "run"
    carry = random_like(setup.abstract_carry, seed=0)
    with ckpt.claimed(workdir), contextlib.closing(ckpt.Checkpoints(workdir)) as checkpoints:
        ckpt.write_config(workdir, config)
        ckpt.write_description(workdir, setup.description)
        checkpoints.save(1, carry, 50.0)
    return workdir


@pytest.fixture(scope="module")
def run(workdir):
    return load_run(workdir)


@pytest.fixture(scope="module")
def whole(run):
    """The logits of all heads for all test images, normalized by the data set of each image."""
    test = run.test()
    mean, std = run.dataset.statistics(jnp.asarray(test.labels))
    images = (jnp.asarray(test.images) / 255 - mean) / std
    numbers = run.dataset.heads.numbers(test.labels)
    return jax.jit(run.model.apply)(run.variables, FromSets(images, numbers))


@pytest.fixture(scope="module")
def measured(run):
    return run.evaluate()


@pytest.mark.parametrize("number", [0, 1])
def test_a_head_is_a_run_on_its_data_set(run, whole, measured, number):
    head = run.head(HEADS[number])
    assert head.description.class_names == ("cat", "dog", "owl")
    assert (head.dataset.name, head.description.image_shape) == (HEADS[number], (6, 6, 3))
    assert head.head() is head
    test = head.test()
    own = whole[9 * number :][: len(test), 3 * number : 3 * number + 3]
    # Different programs round float32 differently.
    np.testing.assert_allclose(head.logits(test.images), own, rtol=1e-4, atol=1e-5)
    error = 100 * np.mean(np.asarray(own).argmax(1) != test.labels)
    assert measured[f"{HEADS[number]}/error"] == pytest.approx(error)


def test_a_head_is_evaluated(run, measured):
    expected = {name: value for name, value in measured.items() if name.startswith("gray/")}
    found = {f"gray/{name}": value for name, value in run.head("gray").evaluate().items()}
    assert found == pytest.approx(expected, rel=1e-5)


def test_paths_of_a_head_are_skipped(run):
    head = run.head("gray")
    images = head.prepare(head.test().images)
    network = Gathered(head.model, head.variables)
    found, expected = network(images), head.logits(head.test().images)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert sum(network.work.loads[0]) == len(images)


def test_a_run_on_several_has_all_test_images(run):
    joined = load_several(HEADS, run.config.dataset.data_dir)
    np.testing.assert_array_equal(run.test().labels, joined.test.labels)
    assert run.other_images == run.head("toy").other_images == []


def test_a_head_has_the_images_of_its_name(run):
    joined = load_several(HEADS[::-1], run.config.dataset.data_dir)
    given = dataclasses.replace(run, given=joined).head("gray")
    np.testing.assert_array_equal(given.test().images, run.head("gray").test().images)
    other = dataclasses.replace(joined, parts=joined.parts[1:])
    with pytest.raises(UserError, match="has no part gray; pass the data that the run was"):
        _ = dataclasses.replace(run, given=other).head("gray").dataset


def test_a_head_must_be_chosen_and_exist(run):
    with pytest.raises(UserError, match=r"a head must be chosen: the run in .* has toy, gray"):
        run.logits(run.test(2).images)
    with pytest.raises(UserError, match=r"there is no head 'digits': .* has toy, gray"):
        run.head("digits")
    with pytest.raises(UserError, match=r"no head 'gray': .* on one data set, toy; leave"):
        run.head("toy").head("gray")


def test_a_network_of_ones_own_is_passed_for_a_head(run):
    config = run.config.copy_and_resolve_references()
    config.model.name = "own:Small"
    own = type(run)(run.workdir, config, 1, run.model, run.variables, run.description)
    with pytest.raises(UserError, match=r"pass it to head\(NAME, model=...\) in Python too"):
        own.head("toy")
    head = own.head("toy", model=run.head("toy").model)
    jax.tree.map(np.testing.assert_array_equal, head.variables, run.head("toy").variables)
    with pytest.raises(UserError, match="is not the network that was trained"):
        own.head("toy", model=several.small(4, paths=2))


# Programs


def test_predict_has_the_classes_of_the_head(run, tmp_path, capsys):
    """Pictures are first rescaled to the size of the head's data set, to be equally sharp."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for name, shape in (("toy", (5, 4)), ("gray", (6, 6))):
        argv = [f"--workdir={run.workdir}", f"--head={name}", "--json", str(tmp_path / "a.png")]
        assert predict.main(argv) == 0
        (found,) = json.loads(capsys.readouterr().out)["classes"][:1]
        mode = "L" if name == "gray" else "RGB"
        small = Image.fromarray(pixels).convert(mode).resize(shape, Image.Resampling.LANCZOS)
        stored = np.asarray(small).reshape(1, *shape[::-1], -1)
        head = run.head(name)
        image = brought_to(stored, (6, 6, 3))
        np.testing.assert_array_equal(pictures.read(tmp_path / "a.png", head), image[0])
        best = np.asarray(jax.nn.softmax(head.logits(image)))[0].max()
        assert found["probability"] == pytest.approx(best, rel=1e-4)


def test_export_has_the_logits_of_the_head(run, tmp_path, capsys):
    out = tmp_path / "gray.jax"
    argv = [f"--workdir={run.workdir}", "--head=gray", f"--out={out}", "--dtype=float32"]
    assert export.main(argv) == 0
    printed = capsys.readouterr().out
    assert "uint8 [b 6 6 3] -> float32 [b 3]" in printed
    images = run.head("gray").test().images
    found = jax.export.deserialize(out.read_bytes()).call(images)
    np.testing.assert_allclose(found, run.head("gray").logits(images), rtol=1e-4, atol=1e-5)


def test_figures_are_of_the_test_images_of_the_head(run, tmp_path, capsys):
    argv = [f"--workdir={run.workdir}", "--head=gray", "--only=paths", f"--out={tmp_path}"]
    assert figures.main(argv) == 0
    (whole, *classes) = json.loads((tmp_path / "paths.json").read_text())["taken"]
    assert whole["images"] == 6
    assert [one["name"] for one in classes] == ["cat", "dog", "owl"]


@pytest.fixture
def line(run):
    """Writes a metrics file with one line for the run; yields the line."""
    path = run.workdir / METRICS_FILE
    line = {"step": 1, "epoch": 1.0, "test/error": 50.0, "test/flip_error": 45.0}
    line |= {"test/gray/error": 40.0, "test/gray/flip_error": 30.0, "test/toy/error": 60.0}
    path.write_text(json.dumps(line) + "\n")
    yield line
    path.unlink()


def test_the_page_is_of_the_head(run, line):
    assert run.metrics() == [line]
    (found,) = run.head("gray").metrics()
    assert found == line | {"test/error": 40.0, "test/flip_error": 30.0}
    facts = figures.page.facts(run.head("gray"), [found])
    assert facts["data set"] == "gray, of toy+gray"
    assert facts["best test error"] == "40.00 % (epoch 1)"


def test_the_card_is_of_the_head(run, line):
    exported = Exported("gray.jax", b"", "jax", (), ())
    text = model_card(run.head("gray"), exported)
    header = yaml.safe_load(text.split("---")[1])
    (result,) = header["model-index"][0]["results"]
    assert result["dataset"]["name"] == "gray"
    assert [metric["value"] for metric in result["metrics"]] == [40.0, 30.0]
    assert "20 training images of `gray`, and on the other data sets of `toy+gray`." in text
    assert "6x6x1, brought to this shape" in text


def test_weights_of_a_head_are_written(run, tmp_path):
    with pytest.raises(UserError, match="a head must be chosen"):
        save_weights(run, tmp_path / "all.safetensors")
    assert save_weights(run.head("toy"), tmp_path / "toy.safetensors").is_file()


@pytest.mark.parametrize("program", [predict, export, figures])
@pytest.mark.parametrize("head", ["", "--head=digits"])
def test_programs_ask_for_a_head_in_one_line(program, head, run, tmp_path, capsys, monkeypatch):
    more = {predict: ["a.png"], export: [f"--out={tmp_path / 'a.jax'}"], figures: []}[program]
    argv = [f"--workdir={run.workdir}", *filter(None, [head]), *more]
    said = refusal(program, argv, capsys, monkeypatch)
    assert re.search(r"has toy, gray \(--head=NAME", said)


def test_eval_prints_the_errors_of_every_data_set(run, measured, capsys, monkeypatch):
    for name, value in (
        ("WORKDIR", str(run.workdir)),
        ("CHECKPOINT", "best"),
        ("TEST_SPLIT", False),
    ):
        monkeypatch.setattr(main, name, types.SimpleNamespace(value=value))
    monkeypatch.setattr(main.config_flags, "CONFIG", types.SimpleNamespace(value=None))
    monkeypatch.setattr(type(run), "evaluate", lambda _: measured)
    enabled = []
    monkeypatch.setattr(main, "enable_shared_cache", enabled.append)
    assert main._evaluate() == 0
    assert enabled == [""]
    printed = capsys.readouterr().out.splitlines()
    assert f"best checkpoint of {run.workdir}, step 1, toy+gray test split" in printed
    for name in ("error", "toy/error", "gray/error"):
        assert f"{name.replace('/', ': ')} {measured[name]:.2f} %" in printed
