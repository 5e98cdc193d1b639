"""Draws figures about the routing in a trained network (Section 7 of the paper, and others).

    python -m multipath_jax.figures --workdir=runs/digits
    python -m multipath_jax.figures --workdir=runs/cifar --only=routes --images=0,7,20-22,cat.jpg
    python -m multipath_jax.figures --workdir=runs/cifar --only=maximize,histograms \\
        --gates=2:2-1,4:1-1 --classes=ship,frog
    python -m multipath_jax.figures --workdir=runs/cifar --html
    python -m multipath_jax.figures --workdir=runs/several --head=digits --out=digits

Figures, each a PNG file in --out, some with a JSON file of their numbers:
    routes        the routes of images through the network (Fig. 8)
    maximize      images that maximize a gate: test images, and one by gradient ascent (Fig. 9)
    histograms    histograms of gates by class (Fig. 10)
    weights       the distributions of the weights of parallel paths (Fig. 11)
    tradeoff      error against parameters, from the ledger of results (Fig. 7)
    classes       the mean of every gate for every class
    clusters      clusters of the gates at each router, compared to the classes
    ablation      the error with gates that do not depend on the image
    paths         the active paths of every class in a discrete network

--html also writes report.html, one page with the run's config and curves, these figures, and an
explorer of the test images' routes. It works offline, as a single file, in any browser.

Gates are written router:input-output, counted from one: 2:2-1 is the paper's g_21^2. Classes are
names or numbers. Images are numbers or ranges of the test split, or image files. Existing figures
are replaced. Exit status: 0 success; 1 a figure cannot be written; 2 invalid input.
"""

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

import numpy as np

from multipath_jax.errors import UserError
from multipath_jax.figures import (
    ablation,
    classes,
    clusters,
    histograms,
    maximize,
    page,
    paths_taken,
    routes,
    weights,
)
from multipath_jax.figures.explorer import Explored
from multipath_jax.figures.inputs import FigureInputs
from multipath_jax.parallel.compilation import enable_shared_cache
from multipath_jax.reproduce import plot, report
from multipath_jax.reproduce.ledger import Ledger
from multipath_jax.runs import load_run
from multipath_jax.utils import cli, storage
from multipath_jax.utils.names import nearest


def main(argv: Sequence[str]) -> int:
    """Draws the figures and returns the exit status."""
    flags = parse(argv)
    run = load_run(flags.workdir, flags.checkpoint).head(flags.head)
    enable_shared_cache(run.config.compilation_cache)
    inputs = FigureInputs(run, flags)
    figures = _drawn(inputs, flags.only)
    _check_used(flags, figures)
    inputs.check(figures)
    for name, draw in figures.items():
        for path in draw(inputs, inputs.folder / f"{name}.png"):
            print(f"wrote {path}", flush=True)
    if flags.html:
        print(f"wrote {_page(inputs, figures)}")
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parses the flags. Raises UserError for unknown flags and invalid values."""
    parser = cli.Parser("figures", __doc__)
    parser.add_argument("--workdir", required=True, metavar="RUN", help="workdir of the run")
    parser.add_argument("--head", metavar="NAME", help="data set, of a run on several")
    parser.add_argument("--checkpoint", default="best", help="best (default), latest, or a step")
    parser.add_argument(
        "--only", metavar="FIGURE,...", help="figures to draw; default: all that are possible"
    )
    parser.add_argument("--images", help="images in routes; default: the first three, 0-2")
    parser.add_argument(
        "--gates", help="gates to draw; default: the four with the largest deviation over images"
    )
    parser.add_argument(
        "--classes", help="classes to draw; default: the first four (clusters: the first seven)"
    )
    parser.add_argument("--layers", help="layers in weights; default: four, evenly spaced")
    parser.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help="use N test images, evenly spaced; default: all, but 2,000 of folders and ImageNet",
    )
    parser.add_argument(
        "--steps", type=int, default=256, help="steps of gradient ascent; default: 256"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed; default: 0")
    parser.add_argument(
        "--results", default="results", metavar="DIR", help="folder of the ledger of results"
    )
    parser.add_argument("--out", metavar="DIR", help="output folder; default: RUN/figures")
    parser.add_argument("--html", action="store_true", help="also write one page, report.html")
    parser.add_argument(
        "--html_images",
        type=int,
        default=page.IMAGES,
        metavar="N",
        help="number of test images on that page, evenly spaced; default: %(default)s",
    )
    flags = parser.parse_args(argv)
    for name in ("limit", "steps", "html_images"):
        value = getattr(flags, name)
        if value is not None and value < 1:
            raise UserError(f"--{name}={value} must be at least 1")
    if not 0 <= flags.seed < 2**32:
        raise UserError(f"--seed={flags.seed} must be from 0 to {2**32 - 1}")
    flags.changed = [name for name in USED_BY if getattr(flags, name) != parser.get_default(name)]
    flags.only = None if flags.only is None else _figures(flags.only)
    return flags


def _check_used(flags: argparse.Namespace, figures: Iterable[str]) -> None:
    """Raises UserError for flags that none of the figures uses."""
    for name in flags.changed:
        if not USED_BY[name] & {*figures}:
            raise UserError(
                f"--{name} has no effect on {', '.join(figures)}; it is for "
                f"{', '.join(sorted(USED_BY[name]))}; remove it"
            )
    if flags.html_images != page.IMAGES and not flags.html:
        raise UserError("--html_images has no effect without --html; add --html or remove it")


def _figures(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in FIGURES:
            near = nearest(name, FIGURES, len(FIGURES))
            raise UserError(f"--only: there is no figure {name!r}; choose {near}")
    return names


# --- The figures ---------------------------------------------------------------------------------


def _routes(inputs: FigureInputs, path: pathlib.PurePath) -> list[pathlib.PurePath]:
    images, whats = zip(*inputs.pictures, strict=True)
    routes.draw(path, routes.trace(inputs.run, np.stack(images), whats, inputs.names))
    return [path]


def _maximize(inputs: FigureInputs, path: pathlib.PurePath) -> list[pathlib.PurePath]:
    ascent = maximize.Ascent(steps=inputs.flags.steps, seed=inputs.flags.seed)
    levels = maximize.levels_of(inputs.test.images)
    made = maximize.synthesize(inputs.run, inputs.gates, inputs.shape, ascent, levels)
    found = maximize.maxima(inputs.observation, inputs.gates, made)
    maximize.draw(path, found, inputs.test.images, inputs.kind)
    return [path]


def _histograms(inputs: FigureInputs, path: pathlib.PurePath) -> list[pathlib.PurePath]:
    found = histograms.histograms(
        inputs.observation, inputs.test.labels, inputs.names, inputs.gates, inputs.classes(4)
    )
    histograms.draw(path, found)
    return [path]


def _weights(inputs: FigureInputs, path: pathlib.PurePath) -> list[pathlib.PurePath]:
    found = weights.layer_weights(inputs.run, inputs.layers, inputs.shape, inputs.flags.seed)
    weights.draw(path, found)
    return [path, _json(path, [weights.summary(layer) for layer in found])]


def _tradeoff(inputs: FigureInputs, path: pathlib.PurePath) -> list[pathlib.PurePath]:
    plot.draw(path, report.points(Ledger(inputs.flags.results).lines()))
    return [path]


def _classes(inputs: FigureInputs, path: pathlib.PurePath) -> list[pathlib.PurePath]:
    classes.draw(path, classes.class_means(inputs.observation, inputs.test.labels, inputs.names))
    return [path]


def _clusters(inputs: FigureInputs, path: pathlib.PurePath) -> list[pathlib.PurePath]:
    labels = inputs.test.labels
    found = clusters.clusters(inputs.observation, labels, inputs.flags.seed)
    clusters.draw(path, found, labels, inputs.names, inputs.classes(7))
    return [path, _json(path, [clusters.summary(one) for one in found])]


def _ablation(inputs: FigureInputs, path: pathlib.PurePath) -> list[pathlib.PurePath]:
    outcomes = ablation.ablate(
        inputs.run,
        inputs.test.images,
        inputs.test.labels,
        inputs.observation,
        inputs.flags.seed,
    )
    print(ablation.table(outcomes))
    ablation.draw(path, outcomes, inputs.kind)
    return [path, _json(path, [dataclasses.asdict(outcome) for outcome in outcomes])]


def _paths(inputs: FigureInputs, path: pathlib.PurePath) -> list[pathlib.PurePath]:
    found = paths_taken.paths_taken(
        inputs.observation, inputs.test.labels, inputs.names, inputs.flags.seed
    )
    print(paths_taken.table(found))
    paths_taken.draw(path, found)
    return [path, _json(path, paths_taken.summary(found))]


def _page(inputs: FigureInputs, figures: Iterable[str]) -> pathlib.PurePath:
    """Writes report.html with the given figures."""
    path = inputs.folder / page.PAGE_FILE
    explored = None
    if inputs.outline.routers:
        seen = inputs.observation, inputs.test, inputs.names, inputs.kind
        explored = Explored(inputs.outline, *seen, inputs.numbers, inputs.total)
    drawn = [inputs.folder / f"{name}.png" for name in figures]
    page.write_page(path, inputs.run, explored, drawn, inputs.flags.html_images)
    return path


def _json(picture: pathlib.PurePath, numbers: Any) -> pathlib.PurePath:
    """Writes the numbers of a figure to a JSON file beside it."""
    path = picture.with_suffix(".json")
    with storage.replacing(path) as new:
        new.write_text(json.dumps(numbers, indent=2) + "\n")
    return path


Draw = Callable[[FigureInputs, pathlib.PurePath], list[pathlib.PurePath]]

FIGURES: dict[str, Draw] = {
    "routes": _routes,
    "maximize": _maximize,
    "histograms": _histograms,
    "weights": _weights,
    "tradeoff": _tradeoff,
    "classes": _classes,
    "clusters": _clusters,
    "ablation": _ablation,
    "paths": _paths,
}
NEED_ROUTERS = FIGURES.keys() - {"weights", "tradeoff"}
USED_BY = {  # the figures that use a flag
    "images": {"routes"},
    "gates": {"maximize", "histograms"},
    "classes": {"histograms", "clusters"},
    "layers": {"weights"},
    "steps": {"maximize"},
    "seed": {"maximize", "weights", "clusters", "ablation", "paths"},
    "results": {"tradeoff"},
}


def _drawn(inputs: FigureInputs, only: list[str] | None) -> dict[str, Draw]:
    """The requested figures, or all that are possible for the network.

    Raises:
      UserError: a requested figure is not possible for the network.
    """
    refused = {}
    if not inputs.outline.routers:
        why = f"{inputs.run.config.model.name} has no routers"
        refused |= dict.fromkeys(NEED_ROUTERS, why)
    elif inputs.outline.discrete:
        refused["ablation"] = f"{inputs.run.config.model.name} is discrete; it needs soft routing"
    else:
        refused["paths"] = f"{inputs.run.config.model.name} is not discrete: all paths are active"
    if not inputs.parallel_layers:
        refused["weights"] = f"{inputs.run.config.model.name} has no parallel paths"
    asked = only or [name for name in FIGURES if name != "paths" or inputs.outline.discrete]
    unable = [name for name in asked if name in refused]
    if only and unable:
        able = ",".join(name for name in FIGURES if name not in refused)
        raise UserError(f"no figure {unable[0]}: {refused[unable[0]]}; choose --only={able}")
    for name in unable:
        print(f"no figure {name}: {refused[name]}")
    return {name: FIGURES[name] for name in asked if name not in refused}


def run() -> NoReturn:
    """The entry point."""
    cli.run(main)


if __name__ == "__main__":
    run()
