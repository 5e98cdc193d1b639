"""Trains the rows of a table by the paper's recipe, and prints the errors beside the paper's.

    python -m multipath_jax.reproduce table2                          every row, three trials each
    python -m multipath_jax.reproduce table2 --rows=BaseCNN-2-CC,BaseCNN --minutes=60
    python -m multipath_jax.reproduce table2 --rows=BaseCNN-2-CC:cifar10_350
    python -m multipath_jax.reproduce table2 --rows=BaseCNN-2         a network not in the paper
    python -m multipath_jax.reproduce table2 --epochs=20              shortened trials, marked so
    python -m multipath_jax.reproduce table4 --data_dir=DIR           one trial each, ImageNet
    python -m multipath_jax.reproduce table2 --recipe=fast            another recipe, fewer epochs
    python -m multipath_jax.reproduce table2 --report                 only the report

Finished trials are in the ledger and are not repeated: rerun the command to resume.
Exit status: 0 all trials are finished; 1 a loss is not finite, or a file cannot be written; 2
invalid input; 3 the time limit is reached; 130 or 143 after Ctrl-C or SIGTERM (0 if all trials were
finished).
"""

import argparse
import os
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from multipath_jax.errors import Failure, UserError
from multipath_jax.models import paper
from multipath_jax.reproduce import pages, report, smoke, tables
from multipath_jax.reproduce.campaign import Place, train_all
from multipath_jax.reproduce.ledger import Ledger
from multipath_jax.utils import cli, filesystem
from multipath_jax.utils.stopping import Stopping

TABLES = {"table2": 2, "table3": 3, "table4": 4}
# Changes to the config for --smoke: a few steps of every network.
SMOKE = {
    "dataset.name": smoke.NAME,
    "dataset.size": "0",
    "dataset.crop": "0",
    "dataset.ten_crop": "False",
    "train_for": "3 steps",
    "schedule.boundaries": "",
    "schedule.warmup": "",
    "batch_size": "4",
    "schedule.learning_rate": "0.01",
    "eval_batch_size": "16",
}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parses the flags. Raises UserError for unknown flags and invalid values."""
    parser = cli.Parser("reproduce", __doc__)
    parser.add_argument("table", choices=TABLES, metavar="table2|table3|table4")
    parser.add_argument("--rows", metavar="NAME[:column],...", help="rows; default: all")
    parser.add_argument(
        "--trials", type=int, metavar="N", help="number of trials; default: 3, for table4 1"
    )
    parser.add_argument(
        "--recipe",
        choices=tables.RECIPES,
        default=tables.PROTOCOL,
        help="the paper's recipe (protocol, the default), or one with fewer epochs (fast)",
    )
    parser.add_argument("--epochs", type=float, metavar="E", help="shorten trials to E epochs")
    parser.add_argument("--minutes", type=float, metavar="M", help="time limit in minutes")
    parser.add_argument("--workdir", metavar="DIR", help="for the runs; default: runs/reproduce")
    parser.add_argument("--data_dir", default="", metavar="DIR", help="TFDS data directory")
    parser.add_argument("--results", metavar="DIR", help="for the ledger; default: results")
    parser.add_argument("--report", action="store_true", help="write the report without training")
    parser.add_argument("--smoke", action="store_true", help="train three steps of every row")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a config key"
    )
    flags = parser.parse_args(argv)
    if flags.trials is not None and flags.trials < 1:
        raise UserError(f"--trials={flags.trials} must be at least 1")
    if flags.minutes is not None and not flags.minutes > 0:
        raise UserError(f"--minutes={flags.minutes:g} must be positive")
    if flags.smoke and (flags.report or flags.epochs is not None):
        raise UserError("--smoke cannot be combined with --report or --epochs")
    if flags.report and (flags.set or flags.epochs is not None):
        raise UserError("--report shows all trials; it cannot be combined with --set or --epochs")
    flags.changes = tables.parse_changes(flags.set)
    names = [name.strip() for name in (flags.rows or "").split(",")]
    names = [name for name in names if name]
    if flags.rows is not None and not names:
        raise UserError("--rows= names no row; leave it out for all rows")
    flags.pairs = tables.select(TABLES[flags.table], names, flags.recipe)
    return flags


def main(argv: Sequence[str]) -> int:
    """Trains or reports, and returns the exit status."""
    flags = parse(argv)
    with Stopping(flags.minutes or float("inf")) as stopping:
        try:
            if flags.report:
                return _report(flags)
            return _smoke(flags, stopping) if flags.smoke else _train(flags, stopping)
        except KeyboardInterrupt:
            print("interrupted; rerun the command to resume from the last checkpoints")
            return stopping.exit_status or 128 + signal.SIGINT
        except BrokenPipeError:
            raise
        except OSError as error:  # no disk space for the ledger or a figure
            what = filesystem.described(error)
            raise Failure(f"{what}; free disk space and rerun the command to resume") from error


def _report(flags: argparse.Namespace) -> int:
    """Prints the requested rows, and writes the pages with all rows."""
    ledger = Ledger(flags.results or "results")
    lines = ledger.lines()
    added = () if flags.rows else dict.fromkeys(row for row, _ in report.unprinted(lines))
    print(report.text(lines, [*_rows(flags), *added], flags.recipe))
    written = pages.write(lines, ledger.path.parent, page := Path("docs/results.md"))
    for path in written:
        print(f"wrote {path}")
    if page.exists() and page not in written:
        print(f"left {page} alone, which is not a page of results; move it and rerun to write it")
    return 0


def _train(flags: argparse.Namespace, stopping: Stopping) -> int:
    """Trains the requested rows and prints their errors and the progress."""
    changes = {"dataset.data_dir": flags.data_dir} | flags.changes
    campaigns = [
        tables.campaign(*pair, changes, flags.epochs, flags.recipe) for pair in flags.pairs
    ]
    place = _place(flags.workdir or "runs/reproduce", flags.results or "results")
    trials = flags.trials or tables.TRIALS[TABLES[flags.table]]
    outcome = train_all(campaigns, trials, place, stopping)
    print(f"\n{report.text(place.ledger.lines(), _rows(flags), flags.recipe)}\n\n{outcome.text}")
    return outcome.status


def _smoke(flags: argparse.Namespace, stopping: Stopping) -> int:
    """Trains the requested rows for a few steps on a small data set, with a separate ledger."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = filesystem.local("--workdir", flags.workdir or temporary)
        changes = SMOKE | {"dataset.data_dir": str(folder / "data")} | flags.changes
        rows = _rows(flags)
        runs = [tables.runs(row, flags.recipe)[0] for row in rows]
        campaigns = [
            tables.campaign(*pair, changes, name=flags.recipe)
            for pair in zip(rows, runs, strict=True)
        ]
        source = smoke.prepare(folder / "data", flags.data_dir)
        print(f"using images of {source}")
        place = _place(folder, flags.results or folder / "results")
        outcome = train_all(campaigns, flags.trials or 1, place, stopping)
        print(f"\n{outcome.text}")
        return outcome.status


def _rows(flags: argparse.Namespace) -> list[paper.Row]:
    """The requested rows: those of the table in its order, then networks not in the paper."""
    asked = dict.fromkeys(row for row, _ in flags.pairs)
    printed = [row for row in paper.rows(TABLES[flags.table]) if row in asked]
    return [*printed, *(row for row in asked if not row.table)]


def _place(workdir: os.PathLike | str, results: os.PathLike | str) -> Place:
    return Place(filesystem.path("--workdir", workdir), Ledger(results))


def run() -> NoReturn:
    """The entry point."""
    cli.run(main)


if __name__ == "__main__":
    run()
