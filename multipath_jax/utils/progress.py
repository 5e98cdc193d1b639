"""Lines that say that a program is at work, where the output is no terminal, which has a bar."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

import jax

SILENCE = 25.0  # seconds without a line, at most: with a second for a call of steps, 30 is kept
SOON = 1.0  # what takes less is not worth a line
_last_line = time.monotonic()


def on_terminal() -> bool:
    """Whether there is a bar: it is drawn on stderr, and lines are printed to stdout."""
    return sys.stdout.isatty() and sys.stderr.isatty()


def say(text: str) -> None:
    """Prints a line."""
    global _last_line
    print(text, flush=True)
    _last_line = time.monotonic()


def is_due() -> bool:
    """Whether there was no line for so long."""
    return _silent() >= SILENCE


def _silent() -> float:
    """The seconds since the last line."""
    return time.monotonic() - _last_line


@contextlib.contextmanager
def at_work(what: str, announce: bool = False) -> Iterator[None]:
    """While the body takes its time, a line at least every so often that it still does.

    Args:
      what: it does, such as "compiling the training step".
      announce: whether to say so soon after it began.
    """
    if on_terminal() or jax.process_index() != 0:
        yield
        return
    ended = threading.Event()
    thread = threading.Thread(target=_remind, args=(what, announce, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _remind(what: str, announce: bool, ended: threading.Event) -> None:
    begun = time.monotonic()
    with contextlib.suppress(OSError):  # which the body meets too, and can tell of
        if ended.wait(SOON):
            return
        if announce:
            say(what)
        while not ended.wait(max(SILENCE - _silent(), 0.0)):
            if is_due():
                say(f"{what}: {duration(time.monotonic() - begun)} so far")


def duration(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
