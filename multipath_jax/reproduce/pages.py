"""The output of ``--report``: figures beside the ledger, and a page of the documentation."""

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
CELLS = ("best", "mean", "trials", "time of one, device")  # columns for each recipe
PAGE = """\
# The paper's errors, and ours

Test errors in %, written by `python -m multipath_jax.reproduce table2 --report` from
`results/ledger.jsonl`. The paper's protocol has 200 epochs, for residual networks and where stated
350. The fast recipe (`configs/cifar_fast.py`), which is not the paper's, has {epochs} epochs.
**best** is the lowest of the trials' errors after the last epoch, as the paper gives the best of
three; **mean** is the mean of the same errors, with their standard deviation. Shortened and altered
trials are not counted; they are listed in the last section.

{pictures}

{tables}"""


def write(lines: Sequence[Line], results: Path, page_file: Path) -> list[Path]:
    """Draws the figures into ``results`` and writes the page, if its folder exists.

    A file with other content is not replaced.

    Args:
      lines: lines of the ledger.
      results: folder for the figures.
      page_file: the page to write.

    Returns:
      The files that were written.
    """
    results.mkdir(parents=True, exist_ok=True)
    plot.draw(results / TRADEOFF, report.points(lines))
    written = [results / TRADEOFF]
    if panels := error_curves(lines):
        curves.draw(results / ERRORS, panels)
        written.append(results / ERRORS)
    if page_file.parent.is_dir() and _is_page_or_free(page_file):
        pictures = {path.name: os.path.relpath(path, page_file.parent) for path in written}
        page_file.write_text(page(lines, pictures))
        written.append(page_file)
    return written


def _is_page_or_free(path: Path) -> bool:
    """Whether there is no file, or one that begins like the page."""
    return not path.exists() or path.read_bytes().startswith(PAGE.partition("\n")[0].encode())


# Errors by epoch


def error_curves(lines: Iterable[Line]) -> dict[str, list[curves.Curve]]:
    """The curves by panel: one for every CIFAR data set and recipe.

    If there are only shortened trials, these are used. Altered trials, and trials that were
    evaluated only once, are not used.
    """
    panels: dict[Panel, dict[paper.Row, list[Line]]] = {}
    for line in lines:
        # Runs of Table 4 are excluded: their name is not one of the table's columns.
        rows = paper.rows(model=line["model"]) or [paper.unprinted(line["model"])]
        rows = [row for row in rows if line["column"] in tables.columns(row)]
        if not rows or tables.altering(line["changed"]) or len(curves.by_epoch(line)[0]) < 2:
            continue
        short, recipe = not report.counts(line, rows[0]), tables.RECIPES.index(line["recipe"])
        panel = panels.setdefault(Panel(short, recipe, line["column"], line["epochs"]), {})
        panel.setdefault(rows[0], []).append(line)
    whole = [panel for panel in panels if not panel.short]
    return {panel.title: panel.curves(panels[panel]) for panel in sorted(whole or panels)}


class Panel(NamedTuple):
    """The key of a panel.

    Attributes:
      short: whether the trials were shortened.
      recipe: index of the recipe in `tables.RECIPES`.
      column: column of the tables.
      epochs: number of epochs.
    """

    short: bool
    recipe: int
    column: str
    epochs: float

    @property
    def title(self) -> str:
        """The title of the panel."""
        data = paper.COLUMNS[self.column].partition(",")[0]
        called = CALLED[tables.RECIPES[self.recipe]]
        return f"{data}, {called}{' shortened to' if self.short else ','} {self.epochs:g} epochs"

    def curves(self, rows: Mapping[paper.Row, Sequence[Line]]) -> list[curves.Curve]:
        """The curves of its networks."""
        return [
            curves.Curve(
                row.network,
                plot.family_of(row.model) in ("CP", "CC"),
                None if self.short else row.errors.get(self.column),
                [curves.by_epoch(line) for line in found],
            )
            for row, found in rows.items()
        ]


# The page


def page(lines: Sequence[Line], pictures: Mapping[str, str]) -> str:
    """The page in Markdown: the paper's errors beside those of both recipes.

    Args:
      lines: lines of the ledger.
      pictures: the paths of the existing figures, by name.
    """
    shown = [f"![{CAPTIONS[name]}]({pictures[name]})" for name in CAPTIONS if name in pictures]
    sections = [_table_of(lines, table) for table in (2, 3, 4)]
    if added := report.unprinted(lines):
        sections.append(f"## Networks that are not in the paper\n\n{_table(lines, added)}")
    sections += filter(None, (_others(lines, recipe) for recipe in tables.RECIPES))
    return PAGE.format(
        epochs=recipes.FAST_EPOCHS,
        pictures="\n\n".join(shown),
        tables="\n".join(sections),
    )


def _table_of(lines: Sequence[Line], table: int) -> str:
    """The section of one of the paper's tables."""
    pairs = [(row, column) for row in paper.rows(table) for column in row.errors]
    found = {name: [report.figures(lines, *pair, name) for pair in pairs] for name in _used(pairs)}
    have = [f"{sum(map(bool, found[name]))} with the {CALLED[name]}" for name in found]
    head = f"## Table {table}\n\nErrors measured, of {len(pairs)}: {', '.join(have)}."
    return f"{head}\n\n{_table(lines, pairs)}"


def _used(pairs: Iterable[tuple[paper.Row, str]]) -> list[str]:
    """The recipes that have runs for any of the rows."""
    return [name for name in CALLED if any(report.columns(row, name) for row, _ in pairs)]


def _table(lines: Sequence[Line], pairs: Sequence[tuple[paper.Row, str]]) -> str:
    """A table with a line for every row and column."""
    names = _used(pairs)
    heads = [f"{CALLED[name]}: {cell}" for name in names for cell in CELLS]
    rows = [["network", "data", "paper", *heads], ["---"] * (3 + len(heads))]
    for row, column in pairs:
        found = (report.figures(lines, row, column, name) for name in names)
        ours = [cell for figures in found for cell in _cells(figures)]
        rows.append([row.network, paper.COLUMNS[column], report.printed(row, column), *ours])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows) + "\n"


def _others(lines: Sequence[Line], recipe: str) -> str:
    """A section with the shortened and altered trials."""
    rows = [*paper.ROWS, *dict.fromkeys(row for row, _ in report.unprinted(lines))]
    table = report.other_table(lines, rows, recipe)
    head = f"## Shortened or altered trials, {CALLED[recipe]}"
    return f"{head}\n\n```text\n{table}\n```\n" if table else ""


def _cells(found: report.Figures | None) -> list[str]:
    """The cells of the columns `CELLS`."""
    if found is None:
        return [""] * len(CELLS)
    best, mean, deviation, _, trials, _, _, time, device = found.cells()
    mean += f" ± {deviation}" if deviation else ""
    return [best, mean, trials, f"{time}, {device}"]
