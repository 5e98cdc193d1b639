"""Draws what a trained network's routers do: Section 7 of the paper, and more.

    python -m multipath_jax.figures --workdir=runs/digits
    python -m multipath_jax.figures --workdir=runs/cifar --only=routes --images=0,7,20-22,cat.jpg
    python -m multipath_jax.figures --workdir=runs/cifar --only=maximize,histograms \\
        --gates=2:2-1,4:1-1 --classes=ship,frog
    python -m multipath_jax.figures --workdir=runs/cifar --html

Figures, each a picture of its own in --out, those with numbers beside a JSON file:
    routes        the routes of the images (Fig. 8)
    maximize      what opens a gate: test images, and one made by gradient ascent (Fig. 9)
    histograms    gates by class (Fig. 10)
    weights       the weights of parallel paths, and how far apart they are (Fig. 11)
    tradeoff      error against parameters, from the ledger of results (Fig. 7)
    classes       the mean of every gate within every class
    clusters      how routes cluster at each depth, and whether the clusters are classes
    ablation      the error with gates that do not depend on the image
    paths         which paths of a discrete network are taken, and what they say of the class

With --html also report.html, one page with the run's facts and curves, these figures, and an
explorer of the test images' routes; it works from the file, in any browser, without a network.

Gates are written router:input-output, counted from one: 2:2-1 is the paper's g_21^2. Classes are
names or numbers; images are numbers of the test split, ranges of them, or picture files. A figure
of an earlier call is replaced. Exit status: 0; 1 if one cannot be written; 2 for bad input.
"""

import argparse
import dataclasses
import difflib
import json
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

import numpy as np
from absl import logging

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
from multipath_jax.figures.subject import Subject
from multipath_jax.parallel.compilation import enable_compilation_cache
from multipath_jax.reproduce import plot, report
from multipath_jax.reproduce.ledger import Ledger
from multipath_jax.runs import load_run
from multipath_jax.utils import cli, storage


def main(argv: Sequence[str]) -> int:
    """Draws the figures that the flags ask for; gives the exit status."""
    flags = parse(argv)
    logging.set_verbosity(logging.ERROR)  # Orbax warns of what is meant
    run = load_run(flags.workdir, flags.checkpoint)
    enable_compilation_cache(run.config.compilation_cache)
    subject = Subject(run, flags)
    figures = _drawn(subject, flags.only)
    subject.check(figures)
    for name, draw in figures.items():
        for path in draw(subject, subject.folder / f"{name}.png"):
            print(f"wrote {path}", flush=True)
    if flags.html:
        print(f"wrote {_page(subject, figures)}")
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The flags. Raises UserError for one that is unknown or has a value that cannot be."""
    parser = cli.Parser("figures", __doc__)
    parser.add_argument("--workdir", required=True, metavar="RUN", help="of the trained network")
    parser.add_argument("--checkpoint", default="best", help="best (default), latest, or a step")
    parser.add_argument("--only", metavar="FIGURE,...", help="default: all that the network allows")
    parser.add_argument("--images", default="0-2", help="of the routes; default: %(default)s")
    parser.add_argument("--gates", help="default: four that differ most between images")
    parser.add_argument("--classes", help="default: the first four; in clusters the first seven")
    parser.add_argument("--layers", help="of the weights; default: four, evenly spaced")
    parser.add_argument("--limit", type=int, metavar="N", help="use the first N test images only")
    parser.add_argument("--steps", type=int, default=256, help="of the ascent; default: 256")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--results", default="results", metavar="DIR", help="of the ledger")
    parser.add_argument("--out", metavar="DIR", help="default: RUN/figures")
    parser.add_argument("--html", action="store_true", help="all on one page too, report.html")
    parser.add_argument(
        "--html_images",
        type=int,
        default=page.IMAGES,
        metavar="N",
        help="test images on that page, evenly spaced over them; default: %(default)s",
    )
    flags = parser.parse_args(argv)
    for name in ("limit", "steps", "html_images"):
        value = getattr(flags, name)
        if value is not None and value < 1:
            raise UserError(f"--{name}={value} must be at least 1")
    flags.only = None if flags.only is None else _figures(flags.only)
    return flags


def _figures(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in FIGURES:
            near = difflib.get_close_matches(name, FIGURES) or FIGURES
            raise UserError(f"--only: there is no figure {name!r}; choose {', '.join(near)}")
    return names


# --- The figures ---------------------------------------------------------------------------------


def _routes(subject: Subject, path: pathlib.PurePath) -> list[pathlib.PurePath]:
    images, whats = zip(*subject.pictures, strict=True)
    routes.draw(path, routes.trace(subject.run, np.stack(images), whats, subject.names))
    return [path]


def _maximize(subject: Subject, path: pathlib.PurePath) -> list[pathlib.PurePath]:
    ascent = maximize.Ascent(steps=subject.flags.steps, seed=subject.flags.seed)
    made = maximize.synthesize(subject.run, subject.gates, subject.shape, ascent)
    found = maximize.maxima(subject.observation, subject.gates, made)
    maximize.draw(path, found, subject.test.images, subject.kind)
    return [path]


def _histograms(subject: Subject, path: pathlib.PurePath) -> list[pathlib.PurePath]:
    found = histograms.histograms(
        subject.observation, subject.test.labels, subject.names, subject.gates, subject.classes(4)
    )
    histograms.draw(path, found)
    return [path]


def _weights(subject: Subject, path: pathlib.PurePath) -> list[pathlib.PurePath]:
    found = weights.layer_weights(subject.run, subject.layers, subject.shape, subject.flags.seed)
    weights.draw(path, found)
    return [path, _json(path, [weights.summary(layer) for layer in found])]


def _tradeoff(subject: Subject, path: pathlib.PurePath) -> list[pathlib.PurePath]:
    plot.draw(path, report.points(Ledger(subject.flags.results).lines()))
    return [path]


def _classes(subject: Subject, path: pathlib.PurePath) -> list[pathlib.PurePath]:
    classes.draw(path, classes.class_means(subject.observation, subject.test.labels, subject.names))
    return [path]


def _clusters(subject: Subject, path: pathlib.PurePath) -> list[pathlib.PurePath]:
    labels = subject.test.labels
    found = clusters.clusters(subject.observation, labels, subject.flags.seed)
    clusters.draw(path, found, labels, subject.names, subject.classes(7))
    return [path, _json(path, [clusters.summary(one) for one in found])]


def _ablation(subject: Subject, path: pathlib.PurePath) -> list[pathlib.PurePath]:
    outcomes = ablation.ablate(
        subject.run,
        subject.test.images,
        subject.test.labels,
        subject.observation,
        subject.flags.seed,
    )
    print(ablation.table(outcomes))
    ablation.draw(path, outcomes, subject.kind)
    return [path, _json(path, [dataclasses.asdict(outcome) for outcome in outcomes])]


def _paths(subject: Subject, path: pathlib.PurePath) -> list[pathlib.PurePath]:
    found = paths_taken.paths_taken(
        subject.observation, subject.test.labels, subject.names, subject.flags.seed
    )
    print(paths_taken.table(found))
    paths_taken.draw(path, found)
    return [path, _json(path, paths_taken.summary(found))]


def _page(subject: Subject, figures: Iterable[str]) -> pathlib.PurePath:
    """Writes the page, with the figures just drawn."""
    path = subject.folder / page.PAGE_FILE
    explored = None
    if subject.outline.routers:
        seen = subject.observation, subject.test, subject.names, subject.kind
        explored = Explored(subject.outline, *seen)
    drawn = [subject.folder / f"{name}.png" for name in figures]
    page.write_page(path, subject.run, explored, drawn, subject.flags.html_images)
    return path


def _json(picture: pathlib.PurePath, numbers: Any) -> pathlib.PurePath:
    """Writes the numbers behind a picture beside it."""
    path = picture.with_suffix(".json")
    with storage.replacing(path) as new:
        new.write_text(json.dumps(numbers, indent=2) + "\n")
    return path


Draw = Callable[[Subject, pathlib.PurePath], list[pathlib.PurePath]]

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


def _drawn(subject: Subject, only: list[str] | None) -> dict[str, Draw]:
    """The figures asked for, or all that the network allows.

    Raises:
      UserError: one was asked for that the network does not allow.
    """
    refused = {}
    if not subject.outline.routers:
        why = f"{subject.run.config.model.name} has no routers"
        refused |= dict.fromkeys(NEED_ROUTERS, why)
    elif subject.outline.discrete:
        refused["ablation"] = f"{subject.run.config.model.name} is discrete: its gates are choices"
    else:
        refused["paths"] = f"{subject.run.config.model.name} is not discrete: all paths are taken"
    if not subject.parallel_layers:
        refused["weights"] = f"{subject.run.config.model.name} has no parallel paths"
    asked = only or [name for name in FIGURES if name != "paths" or subject.outline.discrete]
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
