"""The model card of an exported network: Markdown with a YAML header for the Hugging Face hub.

A card has only what is known. Of weights from elsewhere (`import_weights`), for instance, neither
the training nor the error is.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import yaml
from jaxtyping import Float32, PyTree
from ml_collections import ConfigDict

from multipath_jax.checkpoints import CONFIG_FILE
from multipath_jax.config.keys import FOLDER, FREE_KEYS, OWN, default_config, flatten, read_config
from multipath_jax.data.datasets import HELD_OUT, TEST
from multipath_jax.metrics_file import counted
from multipath_jax.runs import LoadedRun
from multipath_jax.utils.names import printable

TASK = "image-classification"
# The hub's names of data sets, by their names in TFDS.
ON_HUB = {
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "imagenet256": "ILSVRC/imagenet-1k",
}
IMAGES = {TEST: "images of the test split", HELD_OUT: "training images that were held out"}
# What is classified of each image, by the prefixes of the metrics' names.
VIEWS = {"": "{crop}", "flip_": "{crop} and its mirror image", "ten_crop_": "ten crops"}
KINDS = {"error": "error", "top5_error": "top-5 error"}


@dataclasses.dataclass(frozen=True)
class Exported:
    """An exported file.

    Attributes:
      name: its name, without the folder.
      content: its bytes.
      library: the library that reads it, by its name on the hub.
      packages: the packages that wrote it.
      usage: lines of Python that read it.
    """

    name: str
    content: bytes
    library: str
    packages: Sequence[str]
    usage: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Measured:
    """The errors of a checkpoint that its run measured.

    Attributes:
      split: the images, a key of `IMAGES`.
      errors: in percent, by prefix and kind: keys of `VIEWS` and of `KINDS`.
      epoch: number of epochs of training; None if unknown.
      others: the run's errors on these images that count for the best checkpoint.
      is_lowest: whether the error counts and is the lowest of these.
    """

    split: str
    errors: dict[tuple[str, str], float]
    epoch: float | None
    others: list[float]
    is_lowest: bool


def model_card(run: LoadedRun, exported: Exported) -> str:
    """The model card of an exported network.

    Args:
      run: the run.
      exported: the file.

    Returns:
      The text, with a newline at its end.
    """
    config = read_config(run.workdir / CONFIG_FILE)  # run.config has the dtype of the export
    measured = measured_errors(run.metrics(), run.step)
    header = _header(run, exported.library, config, measured)
    sections = [
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---",
        f"# {_network_name(config)}",
        "An image classifier of [multipath_jax](https://github.com/multipath-jax/multipath_jax).",
        _table(_network(run)),
        *_training(run, config),
        *(_error(run, measured) if measured else ()),
        "## File",
        _table(_file(run, exported)),
        _block("python", exported.usage),
        "The classes, in the order of the logits:",
        _block("json", [json.dumps(run.description.class_names)]),
    ]
    return "\n\n".join(sections) + "\n"


def measured_errors(lines: Iterable[dict[str, Any]], step: int) -> Measured | None:
    """The errors of a checkpoint in the lines of ``metrics.jsonl``; None if there are none."""
    lines = list(lines)
    for line in reversed([line for line in lines if line["step"] == step]):
        for split in IMAGES:
            keys = {(view, kind): f"{split}/{view}{kind}" for view in VIEWS for kind in KINDS}
            errors = {key: line[name] for key, name in keys.items() if line.get(name) is not None}
            if errors:
                key = f"{split}/error"
                others = [other[key] for other in counted(lines, key)]
                lowest = bool(counted([line], key)) and line[key] == min(others)
                return Measured(split, errors, line.get("epoch"), others, lowest)
    return None


def weights_hash(variables: PyTree) -> str:
    """SHA-256 of the bytes of all arrays, one after another, in the order of their names.

    It does not depend on the format of the exported file.

    Args:
      variables: the variables of a network, as nested dicts.

    Returns:
      64 hex digits.
    """
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(jax.device_get(variables)):  # JAX sorts the keys of dicts
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def _header(
    run: LoadedRun, library: str, config: ConfigDict, measured: Measured | None
) -> dict[str, Any]:
    """The metadata that the hub reads."""
    name = _data_name(run, config)
    on_hub = ON_HUB.get(name.partition("/")[0])
    header = {
        "library_name": library,
        "pipeline_tag": TASK,
        "tags": ["multipath_jax", _network_name(config)],
    }
    if on_hub and run.step:
        header["datasets"] = [on_hub]
    if measured:
        metrics = [
            {"type": f"{view}{kind}", "name": f"{KINDS[kind]} (%)", "value": round(value, 4)}
            for (view, kind), value in measured.errors.items()
        ]
        dataset = {"type": on_hub or name, "name": name}
        if measured.split == TEST:
            dataset["split"] = TEST
        result = {"task": {"type": TASK}, "dataset": dataset, "metrics": metrics}
        header["model-index"] = [{"name": _network_name(config), "results": [result]}]
    return header


def _network_name(config: ConfigDict) -> str:
    """The name of the network; of a custom one, that of its class."""
    return printable(config.model.name.removeprefix(OWN))


def _data_name(run: LoadedRun, config: ConfigDict) -> str:
    """The name of the data set; not that of a folder, which a card should not disclose."""
    if run.number is not None:
        return printable(run.description.name)
    return FOLDER if config.dataset.source else printable(config.dataset.name.removeprefix(OWN))


def _network(run: LoadedRun) -> Iterator[tuple[str, str]]:
    described = run.description
    yield "network", f"`{_network_name(run.config)}`"
    if run.config.model.options:
        yield "options", f"`{run.config.model.options}`"
    yield "parameters", f"{sum(leaf.size for leaf in jax.tree.leaves(run.variables['params'])):,}"
    height, width, channels = described.stored_shape
    yield "input", f"`{described.dtype} [b {height} {width} {channels}]`, with any b"
    if described.original_shape not in (None, described.stored_shape):
        original = "x".join(map(str, described.original_shape))
        yield "images of the data set", f"{original}, brought to this shape (`data.brought_to`)"
    if described.image_shape != described.stored_shape:
        yield "center crop", _size(run)
    of_what = ", of pixels in [0, 1]" if described.dtype == "uint8" else ""
    yield "mean", _numbers(described.mean) + of_what
    yield "standard deviation", _numbers(described.std)
    yield "output", f"logits, `float32 [b {described.num_classes}]`"
    yield "type of the computation", run.config.dtype


def _size(run: LoadedRun) -> str:
    height, width, _ = run.description.image_shape
    return f"{height}x{width}"


def _numbers(values: Float32[np.ndarray, " c"]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)


def _training(run: LoadedRun, config: ConfigDict) -> Iterator[str]:
    """The data and the recipe, without paths; of weights from elsewhere, where they are from."""
    source = source_of(config)
    if not run.step and source:
        yield f"The weights are those of `{source}`, where they fit; they were not trained further."
    if not run.step:
        return
    name = _data_name(run, config)
    data = "in a folder" if name == FOLDER else f"of `{name}`"
    yield "## Training"
    if run.number is not None:
        data += f", and on the other data sets of `{printable(config.dataset.name)}`"
    yield f"{run.step:,} steps on {run.description.train.count:,} training images {data}."
    if source:
        yield f"The initial weights are those of `{source}`."
    if changed := not_defaults(config):
        yield "The keys of the config that are not the defaults:"
        yield _block("python", [f"config.{key} = {value!r}" for key, value in changed.items()])


def not_defaults(config: ConfigDict) -> dict[str, Any]:
    """The values of a recipe that are not the defaults, by key; without `FREE_KEYS`."""
    default = flatten(default_config())
    return {
        key: value
        for key, value in flatten(config).items()
        if value != default[key] and key not in FREE_KEYS
    }


def source_of(config: ConfigDict) -> str:
    """The name of what the initial weights are from, without its folder; "" if there is none."""
    return printable(pathlib.PurePath(config.init_from).name)


def _error(run: LoadedRun, measured: Measured) -> Iterator[str]:
    """The errors, and how they were measured."""
    crop = f"center crop of {_size(run)}" if run.config.dataset.crop else "whole image"
    yield "## Error"
    yield _table(
        [
            (VIEWS[v].format(crop=crop), KINDS[k], f"{e:.2f} %")
            for (v, k), e in measured.errors.items()
        ]
    )
    epoch = "" if measured.epoch is None else f", epoch {measured.epoch:.2f}"
    count = run.description.test.count
    yield f"Measured by the run at step {run.step:,}{epoch}, on {count:,} {IMAGES[measured.split]}."
    if len(measured.others) > 1 and measured.is_lowest:
        yield f"It is the lowest of {len(measured.others)} errors of the run on these images."


def _file(run: LoadedRun, exported: Exported) -> Iterator[tuple[str, str]]:
    yield "file", f"`{printable(exported.name)}`, {len(exported.content):,} bytes"
    yield "its SHA-256", f"`{hashlib.sha256(exported.content).hexdigest()}`"
    yield "SHA-256 of the weights", f"`{weights_hash(run.variables)}`"
    yield "checkpoint", f"step {run.step:,}"
    yield from ((package, importlib.metadata.version(package)) for package in exported.packages)


def _table(rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown without headings."""
    rows = [tuple(row) for row in rows]
    width = len(rows[0])
    return "\n".join(f"| {' | '.join(row)} |" for row in [[""] * width, ["---"] * width, *rows])


def _block(language: str, lines: Sequence[str]) -> str:
    return "\n".join([f"```{language}", *lines, "```"])
