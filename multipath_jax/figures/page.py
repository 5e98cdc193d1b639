"""A self-contained HTML page about a run: facts, curves, figures, and a route explorer.

The page is `web/page.html` with style, scripts and data inlined; it loads no other files.
"""

import html
import json
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

from ml_collections import ConfigDict

from multipath_jax.card import not_defaults, source_of
from multipath_jax.config.keys import OWN
from multipath_jax.data.datasets import evaluated
from multipath_jax.figures import explorer
from multipath_jax.figures.explorer import Explored
from multipath_jax.metrics_file import SPLITS, counted, seconds_of
from multipath_jax.models.complexity import complexity
from multipath_jax.runs import LoadedRun
from multipath_jax.utils.progress import duration
from multipath_jax.utils.storage import read, replacing

PAGE_FILE = "report.html"
IMAGES = 1000  # default number of images on the page; about 3 MB for CIFAR-10
SCRIPTS = ("tools.js", "run.js", "images.js", "route.js", "explorer.js", "start.js")
TITLES = {  # titles of the figures, by file name
    "routes": "Routes of chosen images (the paper's Fig. 8)",
    "maximize": "Images that maximize a gate (Fig. 9)",
    "histograms": "Gates by class (Fig. 10)",
    "weights": "Weights of parallel paths (Fig. 11)",
    "tradeoff": "Error against parameters (Fig. 7)",
    "classes": "Mean gates of every class",
    "clusters": "Clusters of routes",
    "ablation": "Error with gates that do not depend on the image",
    "paths": "Active paths of every class",
}
OPTIONS = ("accumulate", "ema", "label_smoothing", "loss")  # stated if they are not the defaults
CURVES = tuple(f"{split}/{name}" for split in ("train", *SPLITS) for name in ("loss", "error"))


def write_page(
    path: str | os.PathLike,
    run: LoadedRun,
    explored: Explored | None,
    figures: Iterable[pathlib.PurePath],
    count: int = IMAGES,
) -> None:
    """Writes the page; replaces an existing one.

    Args:
      path: file to write.
      run: the run.
      explored: the records for the test split; None for a network without routers.
      figures: PNG files to include.
      count: largest number of test images in the explorer.
    """
    lines = run.metrics()
    title = f"{run.config.model.name} on {_data(run)}"
    data = {
        "facts": list(facts(run, lines).items()),
        "curves": _curves(lines, explored.outline.routers if explored else ()),
        "figures": [_figure(path) for path in figures],
        "explorer": explorer.pack(explored, count) if explored else None,
    }
    parts = {
        "title": html.escape(title),
        "images": explored.kind if explored else "test",
        "Images": (explored.kind if explored else "test").capitalize(),
        "style": _web("style.css"),
        "script": "\n".join(map(_web, SCRIPTS)),
        # "<" only occurs in strings; escaped, it cannot end the script element.
        "data": json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", r"\u003c"),
    }
    page = re.sub(r"\{\{(\w+)\}\}", lambda marker: parts[marker[1]], _web("page.html"))
    with replacing(path) as new:
        new.write_text(page, encoding="utf-8")


def _data(run: LoadedRun) -> str:
    name = run.config.dataset.name
    return name if run.number is None else f"{run.description.name}, of {name}"


def facts(run: LoadedRun, lines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The size of the network, its recipe and its results, by title.

    Args:
      run: the run.
      lines: the lines of ``metrics.jsonl``.
    """
    config = run.config
    size = complexity(run.model, run.description.image_shape)
    return {
        "network": f"{config.model.name} {config.model.options}".strip(),
        "data set": _data(run),
        **_held_out(config.dataset),
        **_results(lines, evaluated(config.dataset.holdout)),
        **_weights(run),
        "parameters": f"{size.params / 1e6:.3g} M",
        "multiply-adds an image": f"{size.multiply_adds / 1e6:,.4g} M",
        "layers, routers": f"{size.depth}, {size.routers}",
        **(_training(config) if run.step else {}),
        "checkpoint": f"step {run.step}",
    }


def _weights(run: LoadedRun) -> dict[str, str]:
    """What the weights are from, if not from random ones."""
    source = source_of(run.config)
    if source and not run.step:
        return {"weights": f"{source}, not trained further"}
    return {"initial weights": source} if source else {}


def _training(config: ConfigDict) -> dict[str, str]:
    """The recipe."""
    chosen = {
        key: str(value).removeprefix(OWN)
        for key, value in not_defaults(config).items()
        if key in OPTIONS or key.startswith("finetune.")
    }
    return {
        "trained for": f"{config.train_for} in batches of {config.batch_size}",
        **_optimizer(config),
        "augmentation": _augmentation(config),
        **chosen,
        "seed": str(config.seed),
    }


def _optimizer(config: ConfigDict) -> dict[str, str]:
    optimizer = config.optimizer
    if optimizer.name.startswith(OWN):  # it replaces the schedule and the weight decay, too
        return {"optimizer": "passed to Trainer"}
    sgd = optimizer.name == "sgd"
    nesterov = " (Nesterov)" if optimizer.nesterov else ""
    return {
        "optimizer": f"{optimizer.name} {optimizer.options}".strip(),
        "learning rate": _rate(config.schedule),
        **({"momentum": f"{optimizer.momentum:g}{nesterov}"} if sgd else {}),
        "weight decay": f"{optimizer.weight_decay:g}",
    }


def _rate(schedule: ConfigDict) -> str:
    parts = [f"{schedule.learning_rate:g}"]
    if schedule.boundaries:
        parts.append(f"times {schedule.factor:g} after {schedule.boundaries}")
    parts += [f"after a warm-up of {schedule.warmup}"] * bool(schedule.warmup)
    shape = {"cosine": "as a cosine", "linear": "in a straight line"}.get(schedule.kind)
    return ", ".join(parts + ([f"falling to zero {shape}"] if shape else []))


def _augmentation(config: ConfigDict) -> str:
    dataset = config.dataset
    kinds = [f"random crops of {dataset.crop} px"] * (dataset.crop > 0)
    reflected = " by reflection" if dataset.shift_mode == "reflect" else ""
    kinds += [f"shift of up to {dataset.shift} px{reflected}"] * (dataset.shift > 0)
    mirrored = "mirrored in every other epoch" if dataset.alternate_flip else "mirrored or not"
    kinds += [mirrored] * dataset.flip
    kinds += [f"cutout of {dataset.cutout} px"] * (dataset.cutout > 0)
    kinds += [f"random erasing of {dataset.erase:.3g}"] * (dataset.erase > 0)
    kinds += ["TrivialAugment"] * dataset.trivial_augment
    kinds += [f"{name} of {config[name]:g}" for name in ("mixup", "cutmix") if config[name]]
    return ", ".join(kinds) or "none"


def _held_out(dataset: ConfigDict) -> dict[str, str]:
    held_out = f"{dataset.holdout} training images, in place of the test split"
    return {"held-out images": held_out} if dataset.holdout else {}


def _results(lines: Sequence[Mapping[str, Any]], split: str) -> dict[str, str]:
    """The final and best error and the training time, if known."""
    key, kind = f"{split}/error", SPLITS[split]
    tested = [line for line in lines if line.get(key) is not None]
    results = {}
    if tested:
        best = sorted(counted(lines, key), key=lambda line: line[key])[:1]
        for name, line in zip(("final", "best"), (tested[-1], *best), strict=False):
            results[f"{name} {kind} error"] = f"{line[key]:.2f} % (epoch {line['epoch']:g})"
    if seconds_of(lines):
        results["time"] = duration(seconds_of(lines))
    return results


def _curves(lines: Sequence[Mapping[str, Any]], routers: Sequence[str]) -> dict[str, Any]:
    """The values of the curves, and the keys of each router."""
    measured = {key for line in lines for key in line}
    found = []
    for name in routers:
        prefix = f"routing/{name}/"
        shares = [key for key in measured if key.startswith(f"{prefix}share_")]
        keys = {"entropy": f"{prefix}entropy", "shares": sorted(shares, key=_number)}
        found.append({"name": name, **keys})
    drawn = {"epoch", *CURVES, *(key for key in measured if key.startswith("routing/"))}
    kept = [{key: line[key] for key in drawn & line.keys()} for line in lines]
    return {"lines": kept, "routers": found}


def _number(key: str) -> int:
    """The number at the end of a key such as ``share_2``."""
    return int(key.rpartition("_")[2])


def _figure(path: pathlib.PurePath) -> dict[str, str]:
    """The title of a figure and its content as a ``data:`` URL."""
    title = TITLES.get(path.stem, path.stem)
    return {"title": title, "source": explorer.data_url("image/png", read(path))}


def _web(name: str) -> str:
    return (resources.files("multipath_jax.figures") / "web" / name).read_text(encoding="utf-8")
