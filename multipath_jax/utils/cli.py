"""What the runnable modules share: flags, and errors of one line with an exit status."""

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
from multipath_jax.utils.cpu import use_fast_convolutions
from multipath_jax.utils.filesystem import described

NO_DEVICE = "Unable to initialize backend"  # how JAX begins to say so


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


def take_any_character() -> None:
    """Lets stdout and stderr escape what their encoding lacks: users' names may hold anything."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")


def run(main: Callable[[Sequence[str]], int], only_prints: bool = False) -> NoReturn:
    """Ends the program with what ``main(arguments)`` returns, or with one line about an error.

    The status is 2 for a `UserError` and where JAX finds no device, 1 for a `Failure` and whatever
    else cannot be read or written, 130 after Ctrl-C. Other errors are faults of the program, and
    keep their tracebacks.

    Args:
      only_prints: it leaves nothing but its output, so that a reader such as head, which closes the
        pipe when it has seen enough, is status 0 and no error.
    """
    use_fast_convolutions()
    _open_streams()
    take_any_character()
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
    """Prints one line that says what is wrong; gives the exit status."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    with contextlib.suppress(OSError):  # the status has to be enough then
        print(f"error: {lines[0]}", file=sys.stderr)
    return status


def _status(main: Callable[[Sequence[str]], int]) -> int:
    try:
        return main(sys.argv[1:])
    except SystemExit as end:  # of --help, or of absl
        return end.code or 0


def _open_streams() -> None:
    """Where the shell closed one (``>&-``), Python has None in its place."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  (open to the end)


class Output:
    """The standard output, whose errors name it as those of files do theirs."""

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
    """Ends the program after something could not be written or read."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    if only_prints and isinstance(error, BrokenPipeError):
        status = 0
    else:
        status = fail(described(error) if isinstance(error, OSError) else error, 1)
    # At once: threads that are still writing would have tracebacks to print, and the standard
    # output may be what failed.
    os._exit(status)


def _no_device(error: Exception) -> str | None:
    """What to say of an error that came of JAX's finding no device; None for any other."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    wanted = f"JAX_PLATFORMS={platforms}" if platforms else "this machine"
    if str(error).startswith(NO_DEVICE):
        return f"JAX cannot start on {wanted}: {error}"
    if isinstance(error, AssertionError) and "jax" in sys.modules:
        try:  # where the plugin of a platform is not installed, JAX has no words for it
            sys.modules["jax"].devices()
        except AssertionError:
            return f"JAX cannot start on {wanted}: no such device (JAX_PLATFORMS=cpu always works)"
    return None
