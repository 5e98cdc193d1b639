"""The benchmark: ``python -m multipath_jax.benchmark [--quick] [--json=FILE] [--plot=FILE]``.

Exit status: 0 measured (whatever the figures say); 1 a part failed, or something cannot be
written; 2 bad input.
"""

import argparse
import difflib
import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from absl import logging

from multipath_jax import cli
from multipath_jax.benchmark import loader, loop, networks, peers, report, routers
from multipath_jax.benchmark.rows import Row
from multipath_jax.benchmark.settings import Settings, make_settings
from multipath_jax.cpu import convolutions_in_use
from multipath_jax.errors import UserError
from multipath_jax.filesystem import output_file

PARTS: dict[str, Callable[[Settings], Iterator[Row]]] = {
    "overhead": networks.overhead,
    "paths": networks.paths,
    "execution": networks.execution,
    "backward": routers.backward,
    "limit": routers.limit,
    "loop": loop.loop,
    "loader": loader.loader,
    "peers": peers.peers,
    "first_step": loop.first_step,
    "trials": networks.trials,
}
PICTURES = (".png", ".pdf", ".svg")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The flags. Raises UserError for one that is unknown or a file that cannot be written."""
    parser = cli.Parser(
        "benchmark", "Measures the package on this machine; ratios first, with their quartiles."
    )
    parser.add_argument("--quick", action="store_true", help="2 to 3 minutes on 2 CPU cores")
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    parser.add_argument("--plot", metavar="FILE", help="draw the ratios there")
    parser.add_argument("--only", metavar="PART,...", help=f"some of {', '.join(PARTS)}")
    flags = parser.parse_args(argv)
    # Not as argparse's types: it would put words of its own in place of a ValueError's.
    flags.json = None if flags.json is None else output_file("--json", flags.json, replace=True)
    flags.plot = None if flags.plot is None else _picture(flags.plot)
    flags.only = tuple(PARTS) if flags.only is None else _parts(flags.only)
    return flags


def _parts(text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    for name in names:
        if name not in PARTS:
            nearest = difflib.get_close_matches(name, PARTS, n=1, cutoff=0.4)
            hint = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(PARTS)}"
            raise UserError(f"--only: there is no part {name!r}; {hint}")
    if not names:
        raise UserError(f"--only names no part; there are {', '.join(PARTS)}")
    return tuple(name for name in PARTS if name in names)


def _picture(text: str) -> Path:
    path = output_file("--plot", text, replace=True)
    if path.suffix not in PICTURES:
        raise UserError(f"--plot: {text} ends in none of {', '.join(PICTURES)}")
    return path


def main(argv: Sequence[str]) -> int:
    """Measures, prints and writes; gives the exit status."""
    flags = parse(argv)
    logging.set_verbosity(logging.ERROR)  # of the libraries behind a run
    settings = make_settings(flags.quick)
    about = report.environment(settings)
    print(report.heading(about), flush=True)
    if said := convolutions_in_use():
        print(said, flush=True)
    rows: list[tuple[str, Row]] = []
    failed = False
    for part in flags.only:
        print(f"\n{part}", flush=True)
        try:
            for row in PARTS[part](settings):
                rows.append((part, row))
                print("\n".join(report.lines(row)), flush=True)
        except OSError:  # such as of an output that nobody reads any more
            raise
        except Exception:  # the other parts' figures are worth having
            traceback.print_exc()
            failed = True
        # After every part: a run that is cut short leaves what it found.
        if flags.json:
            report.write_json(flags.json, about, rows)
    if flags.plot:
        from multipath_jax.benchmark.plot import draw

        draw(flags.plot, about, rows)
    for path in filter(None, (flags.json, flags.plot)):
        print(f"\nwrote {path}")
    return int(failed)


if __name__ == "__main__":
    # Worker processes share the accelerator with this one; memory is taken as it is needed.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    cli.run(main)
