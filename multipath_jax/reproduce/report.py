"""Our figures beside the paper's: as text, in the README, and as a picture."""

import dataclasses
import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from multipath_jax.models import paper
from multipath_jax.reproduce import plot, protocol
from multipath_jax.reproduce.ledger import Line
from multipath_jax.training.writers import duration

PICTURE = "tradeoff.png"
HEADINGS = (
    ("network", "data", "paper"),
    ("best", "mean", "dev", "lowest", "trials"),
    ("params (M)", "paper's", "multiply-adds (M)", "time", "on"),
)
LEGEND = """\
Test errors in %. best: the lowest of the trials' errors after their last epochs (the paper gives
the best of three trials on CIFAR; it does not say of which epoch); mean, dev: of the same errors,
with the sample's standard deviation; lowest: of all epochs of all trials. time: of one trial. open:
no trial by the protocol yet."""
SECTION = re.compile(r"(<!-- reproduce: .*? -->\n).*?(<!-- /reproduce -->)", re.DOTALL)


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
    if column in protocol.MEASURES:
        return line["by_column"].get(column, [])
    return [line["best_error"], line["final_error"]]


def _trials(lines: Iterable[Line], row: paper.Row, column: str) -> list[Line]:
    """Those that give a row's column."""
    run = (row.model, protocol.run_of(column))
    found = [line for line in lines if (line["model"], line["column"]) == run]
    return [line for line in found if _errors(line, column)]


def by_protocol(line: Line, row: paper.Row) -> bool:
    """Whether a trial counts: as long as the protocol's, by today's recipe."""
    if line["shortened"] or line["altered"]:
        return False
    config, column = line["config"], line["column"]
    return not (
        protocol.is_shortened(row, column, config) or protocol.alterations(row, column, config)
    )


def figures(lines: Iterable[Line], row: paper.Row, column: str) -> Figures | None:
    """By the protocol; of several types of computation that with most trials, then the latest."""
    counting = [line for line in _trials(lines, row, column) if by_protocol(line, row)]
    groups = _groups(((line["dtype"], line) for line in counting), column)
    return max(groups, key=lambda f: (len(f.lines), f.lines[-1]["date"]), default=None)


def others(lines: Iterable[Line], row: paper.Row, column: str) -> list[Figures]:
    """The trials that do not count, by recipe."""
    rest = [line for line in _trials(lines, row, column) if not by_protocol(line, row)]
    return _groups(((protocol.config_hash(line["config"]), line) for line in rest), column)


def _groups(keyed: Iterable[tuple[str, Line]], column: str) -> list[Figures]:
    groups: dict[str, list[Line]] = {}
    for key, line in keyed:
        groups.setdefault(key, []).append(line)
    return [Figures(group, column) for group in groups.values()]


# As text


def text(lines: Sequence[Line], rows: Iterable[paper.Row]) -> str:
    """The rows, and beneath them the trials that do not count."""
    rows = list(rows)
    parts = [f"{LEGEND}\n\n{_table(lines, rows)}"]
    if rest := _other_table(lines, rows):
        parts.append(f"NOT the protocol's figures: shortened or altered trials\n\n{rest}")
    return "\n\n".join(parts)


def _table(lines: Sequence[Line], rows: Sequence[paper.Row]) -> str:
    cells = [[heading for group in HEADINGS for heading in group]]
    for row in rows:
        for column, error in row.errors.items():
            found = figures(lines, row, column)
            own = found.cells() if found else ["open", *[""] * 8]
            printed = "" if row.params is None else f"{row.params:g}"
            first = [row.network, paper.COLUMNS[column], f"{error:g}"]
            cells.append([*first, *own[:6], printed, *own[6:]])
    return aligned(cells, left=(0, 1, 12))


def _other_table(lines: Sequence[Line], rows: Sequence[paper.Row]) -> str:
    cells = [["network", "data", "trained", *HEADINGS[1], "params (M)", *HEADINGS[2][2:]]]
    for row in rows:
        for column in row.errors:
            for found in others(lines, row, column):
                first = [row.network, paper.COLUMNS[column], _how(found.lines[0], row)]
                cells.append([*first, *found.cells()])
    return aligned(cells, left=(0, 1, 2, 11)) if len(cells) > 1 else ""


def _how(line: Line, row: paper.Row) -> str:
    """In which way a trial is not the protocol's."""
    config, column = line["config"], line["column"]
    whole = protocol.recipe(row, column).train_for.removesuffix(" epochs")
    altered = sorted({*line["altered"], *protocol.alterations(row, column, config)})
    parts = [f"{key}={config[key]}" for key in altered]
    if protocol.is_shortened(row, column, config):
        parts.insert(0, f"{line['epochs']:g} of {whole} epochs")
    return ", ".join(parts)


def aligned(cells: Sequence[Sequence[str]], left: Sequence[int]) -> str:
    """Columns side by side, those numbered in ``left`` beginning at their left edge."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index in left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    )


# As files


def write(lines: Sequence[Line], results: Path, readme: Path) -> list[Path]:
    """Draws the picture beside the ledger, and fills the README's section if it has one."""
    results.mkdir(parents=True, exist_ok=True)
    picture = results / PICTURE
    plot.draw(picture, points(lines))
    written = [picture]
    if readme.is_file() and SECTION.search(before := readme.read_text()):
        readme.write_text(SECTION.sub(lambda m: m[1] + section(lines) + m[2], before))
        written.append(readme)
    return written


def section(lines: Sequence[Line]) -> str:
    """What stands between the README's markers."""
    pairs = [(row, column) for row in paper.ROWS for column in row.errors]
    done = sum(figures(lines, *pair) is not None for pair in pairs)
    return (
        f"Of the {len(pairs)} errors in Tables 2 to 4, {done} have been measured here by the "
        "paper's protocol so far.\n\n"
        "<details><summary>Every error, the paper's and ours</summary>\n\n"
        f"```text\n{text(lines, paper.ROWS)}\n```\n\n</details>\n"
    )


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
