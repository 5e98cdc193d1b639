"""The benchmark: ``python -m multipath_jax.benchmark [--quick] [--json=FILE] [--plot=FILE]``.

With ``--minutes=N`` it ends after N minutes (a compilation in progress is finished first). The most
important parts are measured first, every row is written as soon as it is measured, and the output
lists what was not measured.

Exit status: 0 measured (whatever the figures are); 1 a part failed, or a file cannot be written; 2
invalid input; 3 the time limit is reached.
"""

import argparse
import math
import os
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from multipath_jax.benchmark import (
    discrete,
    limit,
    loader,
    loop,
    networks,
    options,
    peers,
    report,
    routers,
)
from multipath_jax.benchmark.process_pool import WorkerFailed
from multipath_jax.benchmark.rows import Part, Row
from multipath_jax.benchmark.settings import Settings, make_settings
from multipath_jax.benchmark.timing import OutOfTime
from multipath_jax.errors import UserError
from multipath_jax.utils import cli
from multipath_jax.utils.cpu import convolutions_in_use
from multipath_jax.utils.filesystem import output_file
from multipath_jax.utils.names import nearest

PARTS: dict[str, Part] = {  # the most important parts first
    "peers": peers.PEERS,
    "options": options.OPTIONS,
    "limit": limit.LIMIT,
    "overhead": networks.OVERHEAD,
    "execution": networks.EXECUTION,
    "discrete": discrete.DISCRETE,
    "loop": loop.LOOP,
    "paths": networks.PATHS,
    "backward": routers.BACKWARD,
    "first_step": loop.FIRST_STEP,
    "loader": loader.LOADER,
}
BUDGET_SPENT = 3  # the exit status
PICTURES = (".png", ".pdf", ".svg")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parses the flags. Raises UserError for unknown flags and files that cannot be written."""
    parser = cli.Parser(
        "benchmark", "Measures the speed on this machine; prints ratios with their quartiles."
    )
    parser.add_argument(
        "--quick", action="store_true", help="smaller sizes: 6 minutes on 2 CPU cores"
    )
    parser.add_argument("--minutes", type=float, metavar="N", help="time limit in minutes")
    parser.add_argument("--json", metavar="FILE", help="write all figures to this file")
    parser.add_argument("--plot", metavar="FILE", help="draw the ratios to this file")
    parser.add_argument(
        "--only", metavar="PART,...", help=f"parts to measure, of {', '.join(PARTS)}"
    )
    flags = parser.parse_args(argv)
    if flags.minutes is not None and not flags.minutes > 0:
        raise UserError(f"--minutes={flags.minutes:g} must be positive")
    # Not as argparse types: argparse replaces the message of a ValueError.
    flags.json = None if flags.json is None else output_file("--json", flags.json, replace=True)
    flags.plot = None if flags.plot is None else _picture(flags.plot)
    flags.only = tuple(PARTS) if flags.only is None else _parts(flags.only)
    return flags


def _parts(text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    for name in names:
        if name not in PARTS:
            near = nearest(name, PARTS, len(PARTS))
            raise UserError(f"--only: there is no part {name!r}; there are {near}")
    if not names:
        raise UserError(f"--only is empty; the parts are {', '.join(PARTS)}")
    return tuple(name for name in PARTS if name in names)


def _picture(text: str) -> Path:
    path = output_file("--plot", text, replace=True)
    if path.suffix not in PICTURES:
        raise UserError(f"--plot: {text} must end in {' or '.join(PICTURES)}")
    return path


def main(argv: Sequence[str]) -> int:
    """Runs the benchmark and returns the exit status."""
    flags = parse(argv)
    settings = make_settings(flags.quick, flags.minutes or math.inf)
    about = report.environment(settings)
    print(report.heading(about), flush=True)
    if said := convolutions_in_use():
        print(said, flush=True)
    rows: list[tuple[str, Row]] = []
    failed = False
    for part in flags.only:
        print(f"\n{part}", flush=True)
        for row in measured(PARTS[part], settings):
            if row is None:
                failed = True
                continue
            rows.append((part, row))
            print("\n".join(report.lines(row)), flush=True)
            # After every row, so that an interrupted run leaves its results.
            if flags.json:
                report.write_json(flags.json, about, rows)
    if flags.json:
        report.write_json(flags.json, about, rows)
    if flags.plot:
        from multipath_jax.benchmark.plot import draw

        draw(flags.plot, about, rows)
    for path in filter(None, (flags.json, flags.plot)):
        print(f"\nwrote {path}")
    left_out = [f"{part}: {row.subject}" for part, row in rows if str(OutOfTime()) in row.note]
    if left_out:
        print(f"\nthe time limit is reached; not measured: {'; '.join(left_out)}")
    return int(failed) or (BUDGET_SPENT if left_out else 0)


def measured(part: Part, settings: Settings) -> Iterator[Row | None]:
    """Yields the rows of a part; None for a failure, whose traceback is printed."""
    for case in part.cases(settings):
        try:
            settings.check_time()
            yield from part.measure(settings, case)
        except (OutOfTime, WorkerFailed) as error:
            yield Row(str(case), note=f"not measured: {error}")
        except Exception:  # continue with the other cases
            traceback.print_exc()
            yield None


def run() -> NoReturn:
    """The entry point."""
    # Worker processes share the accelerator with this one, so memory is not preallocated.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    cli.run(main)


if __name__ == "__main__":
    run()
