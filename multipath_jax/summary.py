"""The networks beside the paper's figures, or the layers of one.

    python -m multipath_jax.summary                    the rows of Tables 2, 3 and 4
    python -m multipath_jax.summary --table=3          those of one table
    python -m multipath_jax.summary BaseCNN-5-CC VGG16 networks by name
    python -m multipath_jax.summary BaseCNN-2-CC       one network, with its layers

Nothing is computed or allocated: shapes alone are evaluated. Exit status: 0; 2 for bad input.
"""

import json
from collections.abc import Sequence
from typing import Any, NoReturn

import flax.linen as nn
import jax
from flax import traverse_util

from multipath_jax.models import create_model, family_of, paper
from multipath_jax.models.complexity import complexity
from multipath_jax.utils import cli

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
    """Prints what the flags ask for; gives the exit status."""
    flags = _parser().parse_args(argv)
    rows = [row for name in flags.names for row in _rows_of(name, flags.classes, flags.size)]
    if not flags.names:
        rows = list(paper.rows(flags.table))
    entries = [entry(row) for row in rows]
    if flags.json:
        print(json.dumps(entries, indent=2))
        return 0
    print(table(entries))
    if len(rows) == 1:
        print(f"\n{layers(create_model(rows[0].model, rows[0].num_classes), rows[0].image_shape)}")
    return 0


def _parser() -> cli.Parser:
    parser = cli.Parser("summary", "The networks beside the paper's figures.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="networks; default: the tables")
    parser.add_argument("--table", type=int, choices=(2, 3, 4), help="the rows of one table")
    parser.add_argument("--classes", type=int, help="classes, instead of the paper's")
    parser.add_argument("--size", type=int, help="side of the images, instead of the paper's")
    parser.add_argument("--json", action="store_true", help="as JSON")
    return parser


def _rows_of(name: str, classes: int | None, size: int | None) -> list[paper.Row]:
    """A network's rows in the paper, or a row of its own; at other classes or sizes if asked.

    Raises:
      UserError: an unknown name.
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
    """Our measures of a row's network beside the paper's figures."""
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
    """Aligned columns, one network a line."""
    cells = [list(HEADINGS.values()), *(_cells(entry) for entry in entries)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        first, *numbers, errors, note = [
            cell.ljust(width) if index in (0, 6, 7) else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join((first, *numbers, errors, note)).rstrip())
    return "\n".join(lines)


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
    """The layers in their order, with the shapes of outputs and parameters, for one image."""
    image = jax.ShapeDtypeStruct((1, *image_shape), "float32")
    order = []  # written while tracing: what comes out of it has its keys sorted

    def run(image):
        variables = model.init(jax.random.key(0), image, train=False)
        kept = {key: tree for key, tree in variables.items() if key != "intermediates"}
        _, captured = model.apply(
            kept, image, train=False, capture_intermediates=True, mutable=["intermediates"]
        )
        order.extend(captured["intermediates"])
        return kept["params"], captured["intermediates"]

    params, outputs = (traverse_util.flatten_dict(tree) for tree in jax.eval_shape(run, image))
    calls = sorted(
        (path[:-1] for path in outputs if path[-1] == "__call__"),
        key=lambda path: (order.index(path[0]) if path else -1, path),
    )
    lines = []
    for path in calls:
        own = [f"{key[-1]} {_shape(leaf)}" for key, leaf in params.items() if key[:-1] == path]
        output = jax.tree.leaves(outputs[*path, "__call__"])[0]
        lines.append(("/".join(path) or "(the network)", _shape(output), ", ".join(own)))
    widths = [max(len(line[column]) for line in lines) for column in (0, 1)]
    return "\n".join(
        f"{name:{widths[0]}}  {shape:{widths[1]}}  {own}".rstrip() for name, shape, own in lines
    )


def _shape(leaf) -> str:
    return "x".join(map(str, leaf.shape)) or "scalar"


def run() -> NoReturn:
    """The entry point."""
    cli.run(main, only_prints=True)


if __name__ == "__main__":
    run()
