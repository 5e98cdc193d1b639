"""Prints the size of networks beside the paper's figures, or the layers of one network.

    python -m multipath_jax.summary                    the rows of Tables 2, 3 and 4
    python -m multipath_jax.summary --table=3          the rows of one table
    python -m multipath_jax.summary BaseCNN-5-CC VGG16 networks by name
    python -m multipath_jax.summary BaseCNN-2-CC       one network, with its layers

Networks are only traced; nothing is computed. Exit status: 0 success; 2 invalid input.
"""

import json
from collections.abc import Sequence
from typing import Any, NoReturn

import flax.linen as nn
import jax
import jax.numpy as jnp

from multipath_jax.errors import UserError
from multipath_jax.models import create_model, family_of, paper
from multipath_jax.models.complexity import complexity
from multipath_jax.utils import cli
from multipath_jax.utils.tables import WIDE, aligned

HEADINGS = {
    "network": "network",
    "params": "params (M)",
    "paper_params": "paper's",
    "multiply_adds": "multiply-adds (M)",
    "depth": "layers",
    "routers": "routers",
    "paper_errors": "the paper's error (%)",
    "note": "note",
}


def main(argv: Sequence[str]) -> int:
    """Prints the table and returns the exit status."""
    flags = _parser().parse_args(argv)
    if flags.table is not None and flags.names:
        raise UserError("--table cannot be combined with names; leave one of them out")
    for flag in ("classes", "size"):
        if getattr(flags, flag) is not None and not flags.names:
            raise UserError(f"--{flag} needs names of networks, such as BaseCNN-2-CC; add them")
    if flags.size is not None and flags.size < 1:
        raise UserError(f"--size={flags.size} must be at least 1")
    rows = [row for name in flags.names for row in _rows_of(name, flags.classes, flags.size)]
    if not flags.names:
        rows = list(paper.rows(flags.table))
    try:
        entries = [entry(row) for row in rows]
    except (ValueError, ZeroDivisionError) as error:  # of a map without pixels
        if flags.size is None:
            raise
        raise UserError(f"--size={flags.size} is too small; choose a larger size") from error
    if flags.json:
        print(json.dumps(entries, indent=2))
        return 0
    print(table(entries))
    if len(rows) == 1:
        print(f"\n{layers(create_model(rows[0].model, rows[0].num_classes), rows[0].image_shape)}")
    return 0


def _parser() -> cli.Parser:
    parser = cli.Parser("summary", "Prints the size of networks beside the paper's figures.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="networks; default: the tables")
    parser.add_argument("--table", type=int, choices=(2, 3, 4), help="only the rows of one table")
    parser.add_argument("--classes", type=int, help="number of classes; default: the paper's")
    parser.add_argument("--size", type=int, help="side of the images; default: the paper's")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _rows_of(name: str, classes: int | None, size: int | None) -> list[paper.Row]:
    """The rows of a network in the paper, or a new row for other classes, sizes or networks.

    Raises:
      UserError: the name is unknown.
    """
    family = family_of(name)
    found = paper.rows(model=name)
    if found and classes is None and size is None:
        return list(found)
    if classes is None:
        classes = found[0].num_classes if found else 10
    height, width, channels = family.image_shape
    shape = (height, width, channels) if size is None else (size, size, channels)
    return [paper.unprinted(name, classes, shape)]


def entry(row: paper.Row) -> dict[str, Any]:
    """The size of a row's network and the paper's figures, as values for JSON."""
    model = create_model(row.model, row.num_classes)
    ours = complexity(model, row.image_shape)
    notes = (row.exception, family_of(row.model).note)
    return {
        "table": row.table,
        "network": row.network,
        "model": row.model,
        "classes": row.num_classes,
        "image_shape": row.image_shape,
        "params": ours.params,
        "paper_params": row.params,
        "multiply_adds": ours.multiply_adds,
        "depth": ours.depth,
        "routers": ours.routers,
        "paper_errors": dict(row.errors),
        "note": "; ".join(filter(None, notes)),
    }


def table(entries: list[dict[str, Any]]) -> str:
    """Formats entries as aligned columns, with one network per line."""
    cells = [list(HEADINGS.values()), *(_cells(entry) for entry in entries)]
    return aligned(cells, left=(0, 6, 7))


def _cells(entry: dict[str, Any]) -> list[str]:
    printed = entry["paper_params"]
    return [
        entry["network"],
        f"{entry['params'] / 1e6:.2f}",
        "" if printed is None else f"{printed:g}",
        f"{entry['multiply_adds'] / 1e6:,.1f}",
        str(entry["depth"]),
        str(entry["routers"]),
        ", ".join(
            f"{error:g} {paper.COLUMNS[name]}" for name, error in entry["paper_errors"].items()
        ),
        entry["note"],
    ]


def layers(model: nn.Module, image_shape: tuple[int, int, int]) -> str:
    """A table of the layers in the order of their calls, for one image.

    Its columns are the shapes of inputs, outputs, parameters and statistics. Parallel paths have
    one array for all of them.
    """
    plain = {"width": WIDE, "force_terminal": False, "color_system": None}
    tabulate = nn.tabulate(
        model,
        jax.random.key(0),
        console_kwargs=plain,
        table_kwargs={"box": None, "pad_edge": False},
    )
    text = tabulate(jnp.zeros((1, *image_shape)), train=False)
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines())


def run() -> NoReturn:
    """The entry point."""
    cli.run(main, only_prints=True)


if __name__ == "__main__":
    run()
