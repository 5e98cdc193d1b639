"""Trains the rows of a table by the paper's protocol, and says how our figures compare.

    python -m multipath_jax.reproduce table2                          every row, three trials each
    python -m multipath_jax.reproduce table2 --rows=BaseCNN-2-CC,BaseCNN --minutes=60
    python -m multipath_jax.reproduce table2 --rows=BaseCNN-2-CC:cifar10_350
    python -m multipath_jax.reproduce table2 --epochs=20              shortened, and marked as such
    python -m multipath_jax.reproduce table4 --data_dir=DIR           one trial each, ImageNet
    python -m multipath_jax.reproduce table2 --recipe=fast            ours, in a table of its own
    python -m multipath_jax.reproduce table2 --report                 trains nothing

The same command goes on where it stopped: what is done is in the ledger, and is not done again.
Exit status: 0 all that was asked for is done; 1 a loss was not finite, or something cannot be
written; 2 bad input; 3 the minutes are spent; 130 or 143 after Ctrl-C or SIGTERM, 0 if all was done
by then.
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
# A few steps of every network: whether it trains, not how well.
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
    """The flags. Raises UserError for one that is unknown or has a value that cannot be."""
    parser = cli.Parser("reproduce", __doc__)
    parser.add_argument("table", choices=TABLES, metavar="table2|table3|table4")
    parser.add_argument("--rows", metavar="NAME[:column],...", help="default: all of the table")
    parser.add_argument(
        "--trials", type=int, metavar="N", help="seeds 0 to N-1; default: 3, 1 of table4"
    )
    parser.add_argument(
        "--recipe",
        choices=tables.RECIPES,
        default=tables.PROTOCOL,
        help="the paper's protocol, the default, or ours of fewer epochs",
    )
    parser.add_argument("--epochs", type=float, metavar="E", help="shorten to so many epochs")
    parser.add_argument("--minutes", type=float, metavar="M", help="stop after so many minutes")
    parser.add_argument("--workdir", metavar="DIR", help="of the runs; default: runs/reproduce")
    parser.add_argument("--data_dir", default="", metavar="DIR", help="where TFDS finds the data")
    parser.add_argument("--results", metavar="DIR", help="of the ledger; default: results")
    parser.add_argument("--report", action="store_true", help="print and draw; train nothing")
    parser.add_argument("--smoke", action="store_true", help="three steps of every row")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of the config"
    )
    flags = parser.parse_args(argv)
    if flags.trials is not None and flags.trials < 1:
        raise UserError(f"--trials={flags.trials} must be at least 1")
    if flags.minutes is not None and not flags.minutes > 0:
        raise UserError(f"--minutes={flags.minutes:g} must be positive")
    if flags.smoke and (flags.report or flags.epochs is not None):
        raise UserError("--smoke goes with neither --report nor --epochs")
    flags.changes = tables.parse_changes(flags.set)
    names = [name.strip() for name in (flags.rows or "").split(",")]
    flags.pairs = tables.select(TABLES[flags.table], [name for name in names if name], flags.recipe)
    return flags


def main(argv: Sequence[str]) -> int:
    """Does what the flags ask for; gives the exit status."""
    flags = parse(argv)
    with Stopping(flags.minutes or float("inf")) as stopping:
        try:
            if flags.report:
                return _report(flags)
            return _smoke(flags, stopping) if flags.smoke else _train(flags, stopping)
        except KeyboardInterrupt:
            print("interrupted; the same command goes on from the last checkpoints")
            return stopping.exit_status or 128 + signal.SIGINT
        except BrokenPipeError:
            raise
        except OSError as error:  # no room for a line of the ledger, or for a figure
            what = filesystem.described(error)
            raise Failure(f"{what}; the same command goes on when there is room") from error


def _report(flags: argparse.Namespace) -> int:
    """Prints the rows asked for; writes all of them."""
    ledger = Ledger(flags.results or "results")
    lines = ledger.lines()
    print(report.text(lines, _rows(flags), flags.recipe))
    for path in pages.write(lines, ledger.path.parent, Path("docs/results.md")):
        print(f"wrote {path}")
    return 0


def _train(flags: argparse.Namespace, stopping: Stopping) -> int:
    """The rows asked for; the last line says where they stand."""
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
    """Every row once, or those asked for, on a small data set, with a ledger of its own."""
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
        print(f"the images are those of {source}")
        place = _place(folder, flags.results or folder / "results")
        outcome = train_all(campaigns, flags.trials or 1, place, stopping)
        print(f"\n{outcome.text}")
        return outcome.status


def _rows(flags: argparse.Namespace) -> list[paper.Row]:
    """The rows asked for, in the table's order."""
    asked = {row for row, _ in flags.pairs}
    return [row for row in paper.rows(TABLES[flags.table]) if row in asked]


def _place(workdir: os.PathLike | str, results: os.PathLike | str) -> Place:
    return Place(filesystem.path("--workdir", workdir), Ledger(results))


def run() -> NoReturn:
    """The entry point."""
    cli.run(main)


if __name__ == "__main__":
    run()
