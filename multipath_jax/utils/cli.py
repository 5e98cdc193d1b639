"""Shared by the programs: the flag parser, one-line errors, exit statuses."""

import argparse
import contextlib
import io
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from absl import logging as absl_logging

from multipath_jax.errors import Failure, UserError
from multipath_jax.utils import cpu
from multipath_jax.utils.filesystem import described

NO_DEVICE = "Unable to initialize backend"  # start of JAX's error message


class Parser(argparse.ArgumentParser):
    """A flag parser without abbreviations; errors are `UserError`s instead of a printed usage."""

    def __init__(self, module: str, description: str):
        """Makes the parser of a module.

        Args:
          module: name of the module in this package, without ``multipath_jax.``.
          description: text for --help, printed without reformatting.
        """
        super().__init__(
            f"python -m multipath_jax.{module}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def escape_unencodable() -> None:
    """Makes stdout and stderr escape characters that their encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")


def run(main: Callable[[Sequence[str]], int], only_prints: bool = False) -> NoReturn:
    """Runs a program and exits; errors are printed as one line.

    The exit status is that of ``main``, 2 for a `UserError` or if JAX finds no device, 1 for a
    `Failure` or another error of reading or writing, and 130 after Ctrl-C. Other exceptions are
    bugs and keep their tracebacks.

    Args:
      main: a function from the arguments to the exit status.
      only_prints: whether the program only prints; then a closed pipe, as by ``head``, is not an
        error.
    """
    cpu.tune()
    _open_streams()
    escape_unencodable()
    try:
        with contextlib.redirect_stdout(Output(sys.stdout)), quiet_logs():
            status = _status(main)
            sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 128 + signal.SIGINT
    except UserError as error:
        status = fail(error, 2)
    except (Failure, OSError) as error:
        _leave(error, only_prints)
    except Exception as error:
        if (message := _no_device(error)) is None:
            raise
        status = fail(message, 2)
    sys.exit(status)


@contextlib.contextmanager
def quiet_logs() -> Iterator[None]:
    """Keeps what libraries log off the terminal: Orbax warns of what is meant, and prints what it
    also raises, once a thread. The flag ``--verbosity`` may say otherwise within.
    """
    asyncio = logging.getLogger("asyncio")
    before = absl_logging.get_verbosity(), asyncio.level
    absl_logging.set_verbosity(absl_logging.FATAL)
    asyncio.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        absl_logging.set_verbosity(before[0])
        asyncio.setLevel(before[1])


def fail(error: Exception | str, status: int) -> int:
    """Prints an error as one line and returns the exit status."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    with contextlib.suppress(OSError):  # stderr is closed; only the status remains
        print(f"error: {lines[0]}", file=sys.stderr)
    return status


def _status(main: Callable[[Sequence[str]], int]) -> int:
    try:
        return main(sys.argv[1:])
    except SystemExit as end:  # by --help or absl
        return end.code or 0


def _open_streams() -> None:
    """Replaces stdout and stderr, which are None if the shell has closed them (``>&-``)."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  (open to the end)


class Output:
    """The standard output, with its name in OSErrors."""

    NAME = "the standard output"

    def __init__(self, stream: io.TextIOBase):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._named():
            return self._stream.write(text)

    def flush(self) -> None:
        with self._named():
            self._stream.flush()

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            error.filename = self.NAME
            raise


def _leave(error: Failure | OSError, only_prints: bool) -> NoReturn:
    """Ends the program after a failure to read or write."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    if only_prints and isinstance(error, BrokenPipeError):
        status = 0
    else:
        status = fail(described(error) if isinstance(error, OSError) else error, 1)
    # Immediately: other threads could print tracebacks, and flushing stdout could fail again.
    os._exit(status)


def _no_device(error: Exception) -> str | None:
    """The message for an error that JAX raises if there is no device; None for other errors."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    wanted = f"JAX_PLATFORMS={platforms}" if platforms else "this machine"
    if str(error).startswith(NO_DEVICE):
        return f"JAX cannot start on {wanted}: {error}"
    if isinstance(error, AssertionError) and "jax" in sys.modules:
        try:  # if a platform's plugin is not installed, JAX raises an AssertionError without text
            sys.modules["jax"].devices()
        except AssertionError:
            return f"JAX cannot start on {wanted}: no such device (JAX_PLATFORMS=cpu always works)"
    return None
