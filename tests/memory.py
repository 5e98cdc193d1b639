"""What a process of the tests takes of the machine's memory."""

import contextlib
import ctypes
import gc
import pathlib
import re

import jax
import pytest

# Bytes that may be resident of a process, and above which it lets compiled programs go after a
# test: what one test adds has room between the two.
LIMIT = 2.0e9
CLEARED_ABOVE = 1.2e9
# What has to come in addition before they are let go again: not all of it can be given back, and
# without them the next test traces and compiles anew.
GROWTH = 0.2e9

_left = 0  # bytes that were resident after the last time


def _bytes(field: str) -> int:
    """A figure of this process; 0 where Linux's /proc is missing."""
    path = pathlib.Path("/proc/self/status")
    found = path.exists() and re.search(rf"^{field}:\s+(\d+) kB", path.read_text(), re.MULTILINE)
    return 1024 * int(found[1]) if found else 0


def resident() -> int:
    """What is resident of this process now."""
    return _bytes("VmRSS")


def peak() -> int:
    """The most that was."""
    return _bytes("VmHWM")


def release() -> None:
    """Lets compiled programs go, and gives what they took back to the system."""
    global _left
    jax.clear_caches()
    gc.collect()
    # What the compiler has freed lies in pieces that glibc keeps unless it is asked.
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    _left = resident()


@contextlib.contextmanager
def bounded(limit: float = LIMIT, cleared_above: float = CLEARED_ABOVE):
    """Fails the test with which the process grows over the limit, and clears up behind others."""
    earlier = peak()
    yield
    if resident() > max(cleared_above, _left + GROWTH):
        release()
    if earlier <= limit < peak():
        pytest.fail(f"{peak() / 1e9:.2f} GB of this process are resident", pytrace=False)
