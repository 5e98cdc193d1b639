"""What ``--report`` writes: pictures beside the ledger, and a page."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from multipath_jax import recipes
from multipath_jax.models import paper
from multipath_jax.reproduce import curves, plot, report, tables
from multipath_jax.reproduce.ledger import Line

TRADEOFF, ERRORS = "tradeoff.png", "errors.png"
CAPTIONS = {
    ERRORS: "Test error by epoch, of networks with and without routing",
    TRADEOFF: "Test error over parameters (the paper's Fig. 7)",
}
CALLED = {tables.PROTOCOL: "protocol", tables.FAST: "fast recipe"}
CELLS = ("best", "mean", "trials", "time of one, device")  # of each recipe
PAGE = """\
# The paper's errors, and ours

Test errors in %, written by `python -m multipath_jax.reproduce table2 --report` from
`results/ledger.jsonl`. By the paper's protocol: 200 epochs, 350 of residual networks or where it is
said. By the fast recipe of ours (`configs/cifar_fast.py`): {epochs} epochs. **best** is the lowest
of the trials' errors after their last epochs, as the paper gives the best of three; **mean** is of
the same errors, with the deviation of several. Shortened and altered trials are not counted; they
stand apart, in the last section.

{pictures}

{tables}"""


def write(lines: Sequence[Line], results: Path, page_file: Path) -> list[Path]:
    """Draws the pictures into ``results`` and writes the page, if the folder for it is there.

    Returns:
      The files that were written.
    """
    results.mkdir(parents=True, exist_ok=True)
    plot.draw(results / TRADEOFF, report.points(lines))
    written = [results / TRADEOFF]
    if panels := error_curves(lines):
        curves.draw(results / ERRORS, panels)
        written.append(results / ERRORS)
    if page_file.parent.is_dir():
        pictures = {path.name: os.path.relpath(path, page_file.parent) for path in written}
        page_file.write_text(page(lines, pictures))
        written.append(page_file)
    return written


# Errors by epoch


def error_curves(lines: Iterable[Line]) -> dict[str, list[curves.Curve]]:
    """A panel for every data set of CIFAR and recipe, or, until there is one, of shortened trials.

    Left out are altered trials, and those that were evaluated once only.
    """
    panels: dict[Panel, dict[paper.Row, list[Line]]] = {}
    for line in lines:
        # Table 4's columns are others than its run: of them no row has it.
        rows = [row for row in paper.rows(model=line["model"]) if line["column"] in row.errors]
        if not rows or tables.altering(line["changed"]) or len(curves.by_epoch(line)[0]) < 2:
            continue
        short, recipe = not report.counts(line, rows[0]), tables.RECIPES.index(line["recipe"])
        panel = panels.setdefault(Panel(short, recipe, line["column"], line["epochs"]), {})
        panel.setdefault(rows[0], []).append(line)
    whole = [panel for panel in panels if not panel.short]
    return {panel.title: panel.curves(panels[panel]) for panel in sorted(whole or panels)}


class Panel(NamedTuple):
    """What the trials of one panel share; ``recipe`` is its number in `tables.RECIPES`."""

    short: bool
    recipe: int
    column: str
    epochs: float

    @property
    def title(self) -> str:
        """In words."""
        data = paper.COLUMNS[self.column].partition(",")[0]
        called = CALLED[tables.RECIPES[self.recipe]]
        return f"{data}, {called}{' shortened to' if self.short else ','} {self.epochs:g} epochs"

    def curves(self, rows: Mapping[paper.Row, Sequence[Line]]) -> list[curves.Curve]:
        """Those of its networks."""
        return [
            curves.Curve(
                row.network,
                plot.family_of(row.model) in ("CP", "CC"),
                None if self.short else row.errors[self.column],
                [curves.by_epoch(line) for line in found],
            )
            for row, found in rows.items()
        ]


# The page


def page(lines: Sequence[Line], pictures: Mapping[str, str]) -> str:
    """All errors of the tables, the paper's, the protocol's and the fast recipe's, in Markdown.

    Args:
      pictures: the paths of those that there are, by name.
    """
    shown = [f"![{CAPTIONS[name]}]({pictures[name]})" for name in CAPTIONS if name in pictures]
    sections = [_table(lines, table) for table in (2, 3, 4)]
    sections += filter(None, (_others(lines, recipe) for recipe in tables.RECIPES))
    return PAGE.format(
        epochs=recipes.FAST_EPOCHS,
        pictures="\n\n".join(shown),
        tables="\n".join(sections),
    )


def _table(lines: Sequence[Line], table: int) -> str:
    pairs = [(row, column) for row in paper.rows(table) for column in row.errors]
    names = [name for name in CALLED if any(report.columns(row, name) for row, _ in pairs)]
    found = {name: [report.figures(lines, *pair, name) for pair in pairs] for name in names}
    have = [f"{sum(map(bool, found[name]))} by the {CALLED[name]}" for name in names]
    heads = [f"{CALLED[name]}: {cell}" for name in names for cell in CELLS]
    rows = [["network", "data", "paper", *heads], ["---"] * (3 + len(heads))]
    for number, (row, column) in enumerate(pairs):
        ours = [cell for name in names for cell in _cells(found[name][number])]
        rows.append([row.network, paper.COLUMNS[column], f"{row.errors[column]:g}", *ours])
    written = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
    head = f"## Table {table}\n\nOf {len(pairs)} errors we have {' and '.join(have)}."
    return f"{head}\n\n{written}\n"


def _others(lines: Sequence[Line], recipe: str) -> str:
    """The trials that do not count, as ``--report`` prints them."""
    table = report.other_table(lines, paper.ROWS, recipe)
    head = f"## Shortened or altered trials, {CALLED[recipe]}"
    return f"{head}\n\n```text\n{table}\n```\n" if table else ""


def _cells(found: report.Figures | None) -> list[str]:
    """As in `CELLS`."""
    if found is None:
        return [""] * len(CELLS)
    best, mean, deviation, _, trials, _, _, time, device = found.cells()
    mean += f" ± {deviation}" if deviation else ""
    return [best, mean, trials, f"{time}, {device}"]
