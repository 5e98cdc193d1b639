"""What the runnable modules share: flags whose errors are one line, and exit status 2 for them."""

import argparse
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from multipath_jax.cpu import use_fast_convolutions
from multipath_jax.errors import UserError


class Parser(argparse.ArgumentParser):
    """Flags, never abbreviated; what is wrong with them is a `UserError`, not a printed usage."""

    def __init__(self, module: str, description: str):
        """``module``: of this package, that is run; ``description``: shown by --help as it is."""
        super().__init__(
            f"python -m multipath_jax.{module}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def new_file(flag: str, name: str) -> pathlib.Path:
    """The file that a flag names. Raises UserError unless it is new and can be written."""
    path = pathlib.Path(name).expanduser()
    if path.exists():
        raise UserError(f"{flag}: {path} is there already; remove it, or choose another name")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"{flag}: {path.parent} is no folder that can be written; choose another")
    return path


def take_any_character() -> None:
    """Lets stdout and stderr escape what their encoding lacks: users' names may hold anything."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")


def run(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Exits with what ``main(arguments)`` returns; a `UserError` is one line and status 2."""
    use_fast_convolutions()
    take_any_character()
    try:
        status = main(sys.argv[1:])
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    sys.exit(status)
