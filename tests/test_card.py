"""The model card of an export: it has only known facts, and the hub can read it."""

import dataclasses
import hashlib
import json

import jax
import numpy as np
import pytest
import yaml
from etils import epath

from multipath_jax import card
from multipath_jax.config.keys import default_config, to_json
from multipath_jax.data.description import Examples
from multipath_jax.runs import load_run

FILE = card.Exported("net.jax", b"\x00content", "jax", ("jax", "flax"), ["import jax", "x = 1"])
LINES = (
    {"step": 10, "epoch": 1.0, "test/error": 12.0, "test/loss": 0.5, "train/error": 11.0},
    {"step": 20, "epoch": 2.0, "test/error": 7.125, "test/top5_error": 0.25},
    {"step": 30, "epoch": 3.0, "test/error": 8.0, "test/flip_error": 7.5, "test/ten_crop_error": 7},
)


@pytest.fixture(scope="module")
def loaded(digits_run):
    return load_run(digits_run, dtype="float32")


@pytest.fixture
def run_of(loaded, tmp_path):
    """A function that makes a run with given changes of the config and lines of metrics."""

    def make(step=20, lines=LINES, stored=(40, 40, 1), **changes):
        config = default_config()
        config.update_from_flattened_dict({"model.name": "BaseCNN-2-CC", **changes})
        (tmp_path / "config.json").write_text(to_json(config))
        (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        config.dtype = "float32"
        described = dataclasses.replace(
            loaded.description,
            stored_shape=stored,
            image_shape=(32, 32, 1),
            train=Examples(50_000, "a"),
            test=Examples(10_000, "b"),
        )
        new = {"workdir": epath.Path(tmp_path), "config": config, "step": step}
        return dataclasses.replace(loaded, description=described, **new)

    return make


def header_of(text):
    _, header, rest = text.split("---\n", 2)
    assert rest.startswith("\n# ")
    return yaml.safe_load(header)


def test_a_trained_network(run_of):
    run = run_of(**{"dataset.name": "cifar10", "dataset.crop": 32, "model.options": "k=1"})
    text = card.model_card(run, FILE)
    assert header_of(text) == {
        "library_name": "jax",
        "pipeline_tag": "image-classification",
        "tags": ["multipath_jax", "BaseCNN-2-CC"],
        "datasets": ["uoft-cs/cifar10"],
        "model-index": [
            {
                "name": "BaseCNN-2-CC",
                "results": [
                    {
                        "task": {"type": "image-classification"},
                        "dataset": {"type": "uoft-cs/cifar10", "name": "cifar10", "split": "test"},
                        "metrics": [
                            {"type": "error", "name": "error (%)", "value": 7.125},
                            {"type": "top5_error", "name": "top-5 error (%)", "value": 0.25},
                        ],
                    }
                ],
            }
        ],
    }
    parameters = sum(leaf.size for leaf in jax.tree.leaves(run.variables["params"]))
    for said in (
        "| network | `BaseCNN-2-CC` |",
        "| options | `k=1` |",
        f"| parameters | {parameters:,} |",
        "| input | `uint8 [b 40 40 1]`, with any b |",
        "| center crop | 32x32 |",
        "| type of the computation | float32 |",
        "20 steps on 50,000 training images of `cifar10`.",
        "| center crop of 32x32 | error | 7.12 % |",
        "| center crop of 32x32 | top-5 error | 0.25 % |",
        "Measured by the run at step 20, epoch 2.00, on 10,000 images of the test split.",
        "It is the lowest of 3 errors of the run on these images.",
        f"| its SHA-256 | `{hashlib.sha256(FILE.content).hexdigest()}` |",
        f"| SHA-256 of the weights | `{card.weights_hash(run.variables)}` |",
        f"| jax | {jax.__version__} |",
        "```python\nimport jax\nx = 1\n```",
        f"```json\n{json.dumps(run.description.class_names)}\n```",
    ):
        assert f"\n{said}\n" in text or f"\n{said} " in text, said
    assert "mirror" not in text


def test_the_recipe_is_what_differs_from_the_defaults_without_paths(run_of, tmp_path):
    changes = {
        "train_for": "7 epochs",
        "dataset.flip": True,
        "dataset.data_dir": f"{tmp_path}/data",
        "init_from": f"{tmp_path}/other/resnet20.safetensors",
        "eval_batch_size": 100,
    }
    text = card.model_card(run_of(**changes), FILE)
    recipe = text.partition("not the defaults:\n\n```python\n")[2].partition("\n```")[0]
    config = default_config()
    exec(recipe, {"config": config})
    assert config.train_for == "7 epochs"
    assert config.dataset.flip
    assert recipe.count("\n") == 1  # without the dtype, which is the export's
    assert "The initial weights are those of `resnet20.safetensors`." in text
    assert str(tmp_path) not in text


def test_other_views_and_a_step_that_is_not_the_best(run_of):
    text = card.model_card(run_of(step=30), FILE)
    assert "| whole image | error | 8.00 % |" in text
    assert "| whole image and its mirror image | error | 7.50 % |" in text
    assert "| ten crops | error | 7.00 % |" in text
    assert "lowest" not in text
    types = [m["type"] for m in header_of(text)["model-index"][0]["results"][0]["metrics"]]
    assert types == ["error", "flip_error", "ten_crop_error"]


@pytest.mark.parametrize("soft", [10, 20])
def test_errors_of_soft_steps_do_not_count(run_of, soft):
    """Of three equal errors, one does not count; the card is of step 20."""
    lines = [line | {"test/error": 7.125, "soft": line["step"] == soft} for line in LINES]
    text = card.model_card(run_of(lines=lines), FILE)
    assert ("It is the lowest of 2 errors of the run" in text) == (soft == 10)
    assert ("lowest" in text) == (soft == 10)


def test_held_out_images(run_of):
    lines = [{"step": 20, "epoch": 2.0, "held_out/error": 5.0}]
    text = card.model_card(run_of(lines=lines, **{"dataset.holdout": 10_000}), FILE)
    assert "on 10,000 training images that were held out." in text
    assert "lowest" not in text  # there is only one error
    dataset = header_of(text)["model-index"][0]["results"][0]["dataset"]
    assert dataset == {"type": "digits", "name": "digits"}


@pytest.mark.parametrize(
    "lines", [(), LINES[:1], [{"step": 20, "epoch": 2.0, "test/error": None}], [{"step": 20}]]
)
def test_an_error_that_is_not_known_is_left_out(run_of, lines):
    text = card.model_card(run_of(lines=lines), FILE)
    assert "model-index" not in header_of(text)
    assert "rror" not in text
    assert "20 steps on" in text


def test_weights_from_elsewhere(run_of, tmp_path):
    changes = {"init_from": f"{tmp_path}/resnet20.safetensors", "dataset.name": "cifar10"}
    text = card.model_card(run_of(step=0, lines=(), **changes), FILE)
    assert header_of(text).keys() == {"library_name", "pipeline_tag", "tags"}
    assert "The weights are those of `resnet20.safetensors`, where they fit; they were" in text
    for unknown in ("## Training", "50,000", "cifar10", "rror", "config", str(tmp_path)):
        assert unknown not in text


def test_a_folder_is_not_disclosed(run_of, tmp_path):
    changes = {"dataset.source": f"{tmp_path}/patients", "dataset.size": 40}
    text = card.model_card(run_of(**changes), FILE)  # dataset.source replaces dataset.name
    assert "20 steps on 50,000 training images in a folder." in text
    assert "datasets" not in header_of(text)
    assert "patients" not in text


def test_the_hash_is_of_the_weights(loaded):
    weights = jax.device_get(loaded.variables)
    expected = hashlib.sha256()
    for leaf in jax.tree.leaves(weights):
        expected.update(leaf.tobytes())
    assert card.weights_hash(loaded.variables) == expected.hexdigest()
    other = jax.tree.map(np.copy, weights)
    leaf = jax.tree.leaves(other)[3]
    leaf.view(np.uint32)[(0,) * leaf.ndim] ^= 1
    assert card.weights_hash(other) != expected.hexdigest()


def test_the_hub_reads_it(run_of):
    hub = pytest.importorskip("huggingface_hub")
    text = card.model_card(run_of(**{"dataset.name": "cifar100"}), FILE)
    found = hub.ModelCard(text).data
    assert (found.library_name, found.datasets) == ("jax", ["uoft-cs/cifar100"])
    error, top5 = found.eval_results
    assert (error.metric_type, error.metric_value, error.dataset_split) == ("error", 7.125, "test")
    assert top5.dataset_type == "uoft-cs/cifar100"
