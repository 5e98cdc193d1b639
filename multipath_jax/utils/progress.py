"""Progress lines for long operations, if the output is not a terminal (which has a bar)."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

import jax

SILENCE = 25.0  # longest time without a line, in seconds
SOON = 1.0  # operations shorter than this, in seconds, print no line
_last_line = time.monotonic()


def on_terminal() -> bool:
    """Whether stdout and stderr are terminals, so that a progress bar is drawn instead."""
    return sys.stdout.isatty() and sys.stderr.isatty()


def say(text: str) -> None:
    """Prints a line."""
    global _last_line
    print(text, flush=True)
    _last_line = time.monotonic()


def is_due() -> bool:
    """Whether no line has been printed for `SILENCE` seconds."""
    return _silent() >= SILENCE


def _silent() -> float:
    """Seconds since the last line."""
    return time.monotonic() - _last_line


@contextlib.contextmanager
def at_work(what: str, announce: bool = False) -> Iterator[None]:
    """Context manager: prints a line every `SILENCE` seconds while the body runs.

    Args:
      what: the operation, such as "compiling the training step".
      announce: whether to print a line already after `SOON` seconds.
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
    with contextlib.suppress(OSError):  # if stdout fails, the main thread will report it
        if ended.wait(SOON):
            return
        if announce:
            say(what)
        while not ended.wait(max(SILENCE - _silent(), 0.0)):
            if is_due():
                say(f"{what}: {duration(time.monotonic() - begun)} so far")


def duration(seconds: float) -> str:
    """Formats seconds as ``1:02:03`` or ``2:03``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
