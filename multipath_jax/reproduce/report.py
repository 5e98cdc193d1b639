"""Our errors beside the paper's, as text and as the points of a figure."""

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
MIRRORED = "with mirrors"  # an additional column for the fast recipe
LEGEND = """\
Test errors in %. best: the lowest of the trials' errors after the last epoch (the paper gives the
best of three trials on CIFAR; it does not say after which epoch); mean, dev: mean and sample
standard deviation of the same errors; lowest: the lowest of all evaluations of all trials. time:
time of one trial. open: no trial by the {} yet."""
FAST_LEGEND = """
Trained by the fast recipe (configs/cifar_fast.py) for {epochs} epochs; the paper's networks for 200
epochs, residual networks for 350. with mirrors: the mean error if each image is classified together
with its mirror image; no other column includes this."""


@dataclasses.dataclass(frozen=True)
class Figures:
    """The results of the trials of one network in one column by one recipe.

    Attributes:
      lines: their lines in the ledger, at least one.
      column: column of the tables.
    """

    lines: Sequence[Line]
    column: str

    @property
    def errors(self) -> list[float]:
        """The trials' errors after the last epoch, in percent."""
        return [_errors(line, self.column)[-1] for line in self.lines]

    @property
    def best(self) -> float:
        """The error of the best trial, which the paper reports."""
        return min(self.errors)

    @property
    def mean(self) -> float:
        """The mean error of the trials."""
        return statistics.fmean(self.errors)

    @property
    def deviation(self) -> float | None:
        """The sample standard deviation of the errors; None for one trial."""
        return statistics.stdev(self.errors) if len(self.errors) > 1 else None

    @property
    def lowest(self) -> float:
        """The lowest error of all evaluations of all trials."""
        return min(min(_errors(line, self.column)) for line in self.lines)

    @property
    def params(self) -> float:
        """The number of parameters in millions."""
        return self.lines[0]["params"] / 1e6

    @property
    def mirrored(self) -> str:
        """The mean error with mirror images; "" unless all trials have measured it."""
        errors = [line.get("flip_error") for line in self.lines]
        return "" if None in errors else f"{statistics.fmean(errors):.2f}"

    def cells(self) -> list[str]:
        """The cells of the last two groups of `HEADINGS`, without the paper's parameters."""
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
    """Errors of one trial, including the lowest; the last one is that after the last epoch."""
    if column in tables.MEASURES:
        return line["by_column"].get(column, [])
    return [line["best_error"], line["final_error"]]


def _trials(lines: Iterable[Line], row: paper.Row, column: str, recipe: str) -> list[Line]:
    """The trials for a row's column by a recipe, including shortened and altered ones."""
    run = (recipe, row.model, tables.run_of(column))
    found = [line for line in lines if (line["recipe"], line["model"], line["column"]) == run]
    return [line for line in found if _errors(line, column)]


def counts(line: Line, row: paper.Row) -> bool:
    """Whether a trial follows its recipe: neither shortened nor altered."""
    short = tables.is_shortened(row, line["column"], line["train_for"], line["recipe"])
    return not short and not tables.altering(line["changed"])


def figures(
    lines: Iterable[Line], row: paper.Row, column: str, recipe: str = tables.PROTOCOL
) -> Figures | None:
    """The figures of a row's column by a recipe, or None if there are no trials.

    If there are trials of several types of computation, the type with most trials is used, and
    among these the latest.
    """
    counting = [line for line in _trials(lines, row, column, recipe) if counts(line, row)]
    groups = _groups(((line["dtype"], line) for line in counting), column)
    return max(groups, key=lambda f: (len(f.lines), f.lines[-1]["date"]), default=None)


def others(
    lines: Iterable[Line], row: paper.Row, column: str, recipe: str = tables.PROTOCOL
) -> list[Figures]:
    """The shortened and altered trials, grouped by kind."""
    rest = [line for line in _trials(lines, row, column, recipe) if not counts(line, row)]
    return _groups(((str(identity(line | {"seed": 0})), line) for line in rest), column)


def _groups(keyed: Iterable[tuple[str, Line]], column: str) -> list[Figures]:
    groups: dict[str, list[Line]] = {}
    for key, line in keyed:
        groups.setdefault(key, []).append(line)
    return [Figures(group, column) for group in groups.values()]


# As text


def unprinted(lines: Iterable[Line]) -> list[tuple[paper.Row, str]]:
    """The networks in the ledger that are not in the paper, and the columns of their trials."""
    trials = dict.fromkeys((line["model"], line["column"]) for line in lines)
    return [(paper.unprinted(model), run) for model, run in trials if not paper.rows(model=model)]


def text(lines: Sequence[Line], rows: Iterable[paper.Row], recipe: str = tables.PROTOCOL) -> str:
    """The report as text: the rows by a recipe, and the shortened and altered trials."""
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
    """The columns of a row for which a recipe has runs."""
    runs = tables.runs(row, recipe)
    return [column for column in tables.columns(row) if tables.run_of(column) in runs]


def printed(row: paper.Row, column: str) -> str:
    """The paper's error as text; "" for a network that is not in the paper."""
    return f"{row.errors[column]:g}" if column in row.errors else ""


def _table(lines: Sequence[Line], rows: Sequence[paper.Row], recipe: str) -> str:
    fast = recipe == tables.FAST
    headings = [*HEADINGS[0], *HEADINGS[1], *[MIRRORED] * fast, *HEADINGS[2]]
    cells = [headings]
    for row in rows:
        for column in columns(row, recipe):
            found = figures(lines, row, column, recipe)
            if not (found or row.table):
                continue
            own = found.cells() if found else ["open", *[""] * 8]
            mirrored = [found.mirrored if found else ""] * fast
            theirs = "" if row.params is None else f"{row.params:g}"
            first = [row.network, paper.COLUMNS[column], printed(row, column)]
            cells.append([*first, *own[:5], *mirrored, own[5], theirs, *own[6:]])
    return aligned(cells, left=(0, 1, len(headings) - 1))


def other_table(lines: Sequence[Line], rows: Sequence[paper.Row], recipe: str) -> str:
    """A table of the shortened and altered trials of the rows; "" if there are none."""
    cells = [["network", "data", "trained", *HEADINGS[1], "params (M)", *HEADINGS[2][2:]]]
    for row in rows:
        for column in columns(row, recipe):
            for found in others(lines, row, column, recipe):
                first = [row.network, paper.COLUMNS[column], _how(found.lines[0], row)]
                cells.append([*first, *found.cells()])
    return aligned(cells, left=(0, 1, 2, 11)) if len(cells) > 1 else ""


def _how(line: Line, row: paper.Row) -> str:
    """A phrase that says how a trial was shortened or altered."""
    column, recipe, changed = line["column"], line["recipe"], line["changed"]
    parts = [f"{key}={changed[key]}" for key in tables.altering(changed)]
    if tables.is_shortened(row, column, line["train_for"], recipe):
        whole = tables.recipe(row, column, recipe).train_for.removesuffix(" epochs")
        parts.insert(0, f"{line['epochs']:g} of {whole} epochs")
    return ", ".join(parts)


# As a figure


def points(lines: Sequence[Line]) -> dict[str, list[plot.Point]]:
    """The points of the figure by panel, one for every table and CIFAR data set."""
    panels = {}
    for table, column in ((2, "cifar10"), (3, "cifar10"), (3, "cifar100")):
        panel = panels[f"Table {table}: {paper.COLUMNS[column]}"] = []
        for row in paper.rows(table):
            if column not in row.errors:
                continue
            about = {"label": row.network, "family": plot.family_of(row.model)}
            panel.append(plot.Point(row.params, row.errors[column], **about))
            if found := figures(lines, row, column):
                trials = (found.mean, found.deviation or 0.0)
                panel.append(plot.Point(found.params, found.best, **about, trials=trials))
    return panels
