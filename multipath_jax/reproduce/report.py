"""Our figures beside the paper's: as text, and as the points of a picture."""

import dataclasses
import statistics
from collections.abc import Iterable, Sequence

from multipath_jax import recipes
from multipath_jax.models import paper
from multipath_jax.reproduce import plot, tables
from multipath_jax.reproduce.ledger import Line, identity
from multipath_jax.utils.progress import duration
from multipath_jax.utils.tables import aligned

HEADINGS = (
    ("network", "data", "paper"),
    ("best", "mean", "dev", "lowest", "trials"),
    ("params (M)", "paper's", "multiply-adds (M)", "time", "on"),
)
MIRRORED = "with mirrors"  # beside them, for the fast recipe
LEGEND = """\
Test errors in %. best: the lowest of the trials' errors after their last epochs (the paper gives
the best of three trials on CIFAR; it does not say of which epoch); mean, dev: of the same errors,
with the sample's standard deviation; lowest: of all evaluations of all trials. time: of one trial.
open: no trial by the {} yet."""
FAST_LEGEND = """
All were trained by our fast recipe (configs/cifar_fast.py) for {epochs} epochs, the paper's by the
paper's protocol for 200, residual networks for 350. with mirrors: the mean error where an image
and its mirror image are classified together; it is part of no other column."""


@dataclasses.dataclass(frozen=True)
class Figures:
    """What the trials of one network in one column by one recipe gave.

    Attributes:
      lines: theirs in the ledger, at least one.
    """

    lines: Sequence[Line]
    column: str

    @property
    def errors(self) -> list[float]:
        """After the last epochs, in percent."""
        return [_errors(line, self.column)[-1] for line in self.lines]

    @property
    def best(self) -> float:
        """The paper's way: the best trial."""
        return min(self.errors)

    @property
    def mean(self) -> float:
        """The honest way."""
        return statistics.fmean(self.errors)

    @property
    def deviation(self) -> float | None:
        """The sample's standard deviation; None for one trial."""
        return statistics.stdev(self.errors) if len(self.errors) > 1 else None

    @property
    def lowest(self) -> float:
        """Of all epochs of all trials."""
        return min(min(_errors(line, self.column)) for line in self.lines)

    @property
    def params(self) -> float:
        """In millions."""
        return self.lines[0]["params"] / 1e6

    @property
    def mirrored(self) -> str:
        """The mean error with mirror images, where all trials measured it."""
        errors = [line.get("flip_error") for line in self.lines]
        return "" if None in errors else f"{statistics.fmean(errors):.2f}"

    def cells(self) -> list[str]:
        """As in the last two groups of `HEADINGS`, the paper's parameters left out."""
        deviation = "" if self.deviation is None else f"{self.deviation:.2f}"
        seconds = [line["wall_seconds"] for line in self.lines if line["wall_seconds"]]
        return [
            f"{self.best:.2f}",
            f"{self.mean:.2f}",
            deviation,
            f"{self.lowest:.2f}",
            str(len(self.lines)),
            f"{self.params:.2f}",
            f"{self.lines[0]['multiply_adds'] / 1e6:,.1f}",
            duration(statistics.fmean(seconds)) if seconds else "",
            f"{self.lines[0]['device']}, {self.lines[0]['dtype']}",
        ]


def _errors(line: Line, column: str) -> list[float]:
    """Of one trial, that after the last epoch at the end, the lowest among them; maybe none."""
    if column in tables.MEASURES:
        return line["by_column"].get(column, [])
    return [line["best_error"], line["final_error"]]


def _trials(lines: Iterable[Line], row: paper.Row, column: str, recipe: str) -> list[Line]:
    """Those that give a row's column by a recipe, also shortened or altered."""
    run = (recipe, row.model, tables.run_of(column))
    found = [line for line in lines if (line["recipe"], line["model"], line["column"]) == run]
    return [line for line in found if _errors(line, column)]


def counts(line: Line, row: paper.Row) -> bool:
    """Whether a trial is one by the recipe that it names: as long, and not altered."""
    short = tables.is_shortened(row, line["column"], line["train_for"], line["recipe"])
    return not short and not tables.altering(line["changed"])


def figures(
    lines: Iterable[Line], row: paper.Row, column: str, recipe: str = tables.PROTOCOL
) -> Figures | None:
    """By a recipe; of several types of computation that with most trials, then the latest."""
    counting = [line for line in _trials(lines, row, column, recipe) if counts(line, row)]
    groups = _groups(((line["dtype"], line) for line in counting), column)
    return max(groups, key=lambda f: (len(f.lines), f.lines[-1]["date"]), default=None)


def others(
    lines: Iterable[Line], row: paper.Row, column: str, recipe: str = tables.PROTOCOL
) -> list[Figures]:
    """The trials that do not count, those of one kind together."""
    rest = [line for line in _trials(lines, row, column, recipe) if not counts(line, row)]
    return _groups(((str(identity(line | {"seed": 0})), line) for line in rest), column)


def _groups(keyed: Iterable[tuple[str, Line]], column: str) -> list[Figures]:
    groups: dict[str, list[Line]] = {}
    for key, line in keyed:
        groups.setdefault(key, []).append(line)
    return [Figures(group, column) for group in groups.values()]


# As text


def text(lines: Sequence[Line], rows: Iterable[paper.Row], recipe: str = tables.PROTOCOL) -> str:
    """The rows by a recipe, and beneath them the trials that do not count."""
    rows, fast = list(rows), recipe == tables.FAST
    whose = "the fast recipe's" if fast else "the protocol's"
    legend = LEGEND.format("fast recipe" if fast else "protocol")
    if fast:
        legend += FAST_LEGEND.format(epochs=recipes.FAST_EPOCHS)
    parts = [f"{legend}\n\n{_table(lines, rows, recipe)}"]
    if rest := other_table(lines, rows, recipe):
        parts.append(f"NOT {whose} figures: shortened or altered trials\n\n{rest}")
    return "\n\n".join(parts)


def columns(row: paper.Row, recipe: str) -> list[str]:
    """The columns of a row that a recipe gives."""
    return [column for column in row.errors if tables.run_of(column) in tables.runs(row, recipe)]


def _table(lines: Sequence[Line], rows: Sequence[paper.Row], recipe: str) -> str:
    fast = recipe == tables.FAST
    headings = [*HEADINGS[0], *HEADINGS[1], *[MIRRORED] * fast, *HEADINGS[2]]
    cells = [headings]
    for row in rows:
        for column in columns(row, recipe):
            found = figures(lines, row, column, recipe)
            own = found.cells() if found else ["open", *[""] * 8]
            mirrored = [found.mirrored if found else ""] * fast
            printed = "" if row.params is None else f"{row.params:g}"
            first = [row.network, paper.COLUMNS[column], f"{row.errors[column]:g}"]
            cells.append([*first, *own[:5], *mirrored, own[5], printed, *own[6:]])
    return aligned(cells, left=(0, 1, len(headings) - 1))


def other_table(lines: Sequence[Line], rows: Sequence[paper.Row], recipe: str) -> str:
    """The trials of the rows that were shortened or altered; empty if there are none."""
    cells = [["network", "data", "trained", *HEADINGS[1], "params (M)", *HEADINGS[2][2:]]]
    for row in rows:
        for column in columns(row, recipe):
            for found in others(lines, row, column, recipe):
                first = [row.network, paper.COLUMNS[column], _how(found.lines[0], row)]
                cells.append([*first, *found.cells()])
    return aligned(cells, left=(0, 1, 2, 11)) if len(cells) > 1 else ""


def _how(line: Line, row: paper.Row) -> str:
    """In which way a trial is not one by its recipe."""
    column, recipe, changed = line["column"], line["recipe"], line["changed"]
    parts = [f"{key}={changed[key]}" for key in tables.altering(changed)]
    if tables.is_shortened(row, column, line["train_for"], recipe):
        whole = tables.recipe(row, column, recipe).train_for.removesuffix(" epochs")
        parts.insert(0, f"{line['epochs']:g} of {whole} epochs")
    return ", ".join(parts)


# As a picture


def points(lines: Sequence[Line]) -> dict[str, list[plot.Point]]:
    """Errors over parameters: a panel for every table and data set of CIFAR."""
    panels = {}
    for table, column in ((2, "cifar10"), (3, "cifar10"), (3, "cifar100")):
        panel = panels[f"Table {table}: {paper.COLUMNS[column]}"] = []
        for row in paper.rows(table):
            if column not in row.errors:
                continue
            about = {"label": row.network, "family": plot.family_of(row.model)}
            panel.append(plot.Point(row.params, row.errors[column], **about))
            if found := figures(lines, row, column):
                spread = (found.mean, found.deviation or 0.0)
                panel.append(plot.Point(found.params, found.best, **about, spread=spread))
    return panels
