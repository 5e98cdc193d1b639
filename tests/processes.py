"""Processes that tests start: none of them outlives its test."""

import contextlib
import ctypes
import os
import pathlib
import signal
import sys
import time
from multiprocessing import forkserver, resource_tracker

import pytest

_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """From now on what a child leaves behind is a child of this process, not of init (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children() -> set[int]:
    """The child processes; none where Linux's /proc is missing.

    Python's own are left out, which look after shared memory and fork others until the end of this
    process.
    """
    found: set[int] = set()
    for thread in pathlib.Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):  # the thread has ended
            found.update(map(int, thread.read_text().split()))
    return found - {
        resource_tracker._resource_tracker._pid,
        forkserver._forkserver._forkserver_pid,
    }


def end(earlier: set[int]) -> None:
    """Kills all children but the earlier ones, and all that descends from them.

    With `adopt_orphans` nothing can hide: what a killed process had started or was just starting
    is a child by the time that `waitpid` returns.
    """
    while left := children() - earlier:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _running(pid: int) -> bool:
    """Whether a child has not ended; one that nobody waited for is waited for here."""
    try:
        return os.waitpid(pid, os.WNOHANG) == (0, 0)
    except ChildProcessError:
        return False


def _command(pid: int) -> str:
    try:
        words = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    return b" ".join(words).decode(errors="replace").strip()[:200]


@contextlib.contextmanager
def none_left(seconds: float = 10.0):
    """Fails the test if processes that were started within are left, and kills them.

    Args:
      seconds: what those get that were already told to end.
    """
    earlier = children()
    yield
    deadline = time.monotonic() + seconds
    while left := [pid for pid in children() - earlier if _running(pid)]:
        if time.monotonic() > deadline:
            commands = "; ".join(f"{pid}: {_command(pid)}" for pid in left)
            end(earlier)
            pytest.fail(f"processes are left of this test: {commands}", pytrace=False)
        time.sleep(0.02)
