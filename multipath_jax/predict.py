"""Classifies images with a trained network.

    python -m multipath_jax.predict --workdir=runs/digits seven.png photographs/
    python -m multipath_jax.predict --workdir=runs/digits --json photographs/ > answers.jsonl
    python -m multipath_jax.predict --workdir=runs/digits --routes=routes.png seven.png
    python -m multipath_jax.predict --workdir=runs/several --head=digits seven.png

Images may have any size and mode. Folders are searched for images at any depth, as in training:
hidden files are ignored, links are followed, and the number of ignored files is printed on stderr.
One line per image has its five most probable classes. Exit status: 0 success; 1 an image cannot be
read (an error names it, and the others are classified), or a file cannot be written; 2 invalid
input.
"""

import itertools
import json
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple, NoReturn

import jax
import numpy as np
from jaxtyping import Float32, UInt8
from rich.cells import cell_len

from multipath_jax import gates, pictures
from multipath_jax.data.files import LeftOut
from multipath_jax.data.images import BadImage
from multipath_jax.errors import UserError
from multipath_jax.parallel.compilation import enable_shared_cache
from multipath_jax.runs import LoadedRun, load_run
from multipath_jax.utils import cli, filesystem
from multipath_jax.utils.names import printable
from multipath_jax.utils.tables import aligned

BATCH = 64  # images per batch, so that a folder of any size fits into memory
TOP = 5
DRAWN = 8  # largest number of images in a figure of routes


class Picture(NamedTuple):
    """An image file and its pixels as input of the network.

    Attributes:
      path: the file.
      pixels: `[h w c]`.
    """

    path: pathlib.Path
    pixels: UInt8[np.ndarray, "h w c"]


class Answer(NamedTuple):
    """The prediction for an image.

    Attributes:
      path: the file.
      ranked: names and probabilities of the most probable classes, in decreasing order.
    """

    path: pathlib.Path
    ranked: list[tuple[str, float]]


def main(argv: Sequence[str]) -> int:
    """Prints a prediction for each image and returns the exit status."""
    flags = _parser().parse_args(argv)
    run = load_run(flags.workdir, flags.checkpoint).head(flags.head)
    enable_shared_cache(run.config.compilation_cache)
    drawing = flags.routes and _drawing(run, flags.routes)
    left_out = LeftOut()
    paths = pictures.find(flags.pictures, left_out)
    if left_out:
        print(f"left out: {left_out}", file=sys.stderr)
    form = _json if flags.json else Table(paths, run.description.class_names)
    readable, size, count = _readable(paths, run), min(BATCH, len(paths)), 0
    drawn: list[Picture] = []
    while batch := list(itertools.islice(readable, size)):
        count += len(batch)
        drawn += batch[: DRAWN - len(drawn)]
        print(form(answers(run, batch, size)), flush=True)
    if drawing and drawn:
        draw_routes(run, drawn, drawing)
        print(f"wrote {drawing}", file=sys.stderr)
    return int(count < len(paths))


def _parser() -> cli.Parser:
    parser = cli.Parser("predict", "Classifies images with a trained network.")
    parser.add_argument("pictures", nargs="+", metavar="IMAGE", help="image files or folders")
    parser.add_argument("--workdir", required=True, help="workdir of the run")
    parser.add_argument("--head", metavar="NAME", help="data set, of a run on several")
    parser.add_argument("--checkpoint", default="best", help="best (default), latest, or a step")
    parser.add_argument(
        "--routes", metavar="FILE.png", help=f"draw the routes of the first {DRAWN} images"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    return parser


def _readable(paths: Sequence[pathlib.Path], run: LoadedRun) -> Iterator[Picture]:
    """Yields the images that can be read; errors about the others are printed on stderr."""
    for path in paths:
        try:
            yield Picture(path, pictures.read(path, run))
        except BadImage as error:
            print(f"error: {path} cannot be read ({error})", file=sys.stderr)


def answers(run: LoadedRun, batch: Sequence[Picture], size: int) -> list[Answer]:
    """Classifies a batch of images.

    Args:
      run: the run.
      batch: the images.
      size: the batch is padded to this size, so that the program is compiled once.
    """
    images = np.stack([picture.pixels for picture in batch])
    images = np.pad(images, ((0, size - len(batch)), (0, 0), (0, 0), (0, 0)))
    probabilities = np.asarray(jax.nn.softmax(run.logits(images)))
    return [
        Answer(picture.path, ranking(row, run.description.class_names))
        for picture, row in zip(batch, probabilities[: len(batch)], strict=True)
    ]


def ranking(
    probabilities: Float32[np.ndarray, " classes"], names: Sequence[str]
) -> list[tuple[str, float]]:
    """The names and probabilities of the most probable classes, in decreasing order.

    Args:
      probabilities: `[classes]`.
      names: names in the order of the logits.
    """
    order = np.argsort(-probabilities, stable=True)[:TOP]
    return [(names[index], float(probabilities[index])) for index in order]


def _drawing(run: LoadedRun, name: str) -> pathlib.Path:
    """The path of --routes. Raises UserError if it is invalid, or the network has no routers."""
    if not name.endswith((".png", ".pdf", ".svg")):
        raise UserError(f"--routes={name} must end in .png, .pdf or .svg")
    if not gates.outline(run, run.description.image_shape).routers:
        raise UserError(f"--routes: {run.config.model.name} has no routers; remove the flag")
    return filesystem.output_file("--routes", name)


def draw_routes(run: LoadedRun, chosen: Sequence[Picture], path: pathlib.Path) -> None:
    """Draws the routes of images through the network, as in Fig. 8 of the paper."""
    from multipath_jax.figures import routes  # matplotlib, which other predictions do not need

    images = np.stack([picture.pixels for picture in chosen])
    names = [picture.path.name for picture in chosen]
    routes.draw(path, routes.trace(run, images, names, run.description.class_names))


def _json(found: Sequence[Answer]) -> str:
    """An object for each answer."""
    return "\n".join(map(_object, found))


def _object(answer: Answer) -> str:
    classes = [{"class": name, "probability": value} for name, value in answer.ranked]
    return json.dumps({"picture": str(answer.path), "classes": classes})


class Table:
    """Formats predictions as columns whose widths are known in advance."""

    def __init__(self, paths: Sequence[pathlib.Path], class_names: Sequence[str]):
        path = max(cell_len(printable(str(path))) for path in paths)
        name = max(cell_len(printable(name)) for name in class_names)
        ranks = min(TOP, len(class_names))
        self._widths = [path, *[name, len("100.0 %")] * ranks]
        self._left = [0, *range(1, 2 * ranks, 2)]  # all but the probabilities

    def __call__(self, found: Sequence[Answer]) -> str:
        return aligned([self._cells(answer) for answer in found], self._left, self._widths)

    def _cells(self, answer: Answer) -> list[str]:
        ranked = ((printable(name), f"{100 * value:.1f} %") for name, value in answer.ranked)
        return [printable(str(answer.path)), *itertools.chain(*ranked)]


def run() -> NoReturn:
    """The entry point."""
    cli.run(main, only_prints=True)


if __name__ == "__main__":
    run()
