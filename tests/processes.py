"""Makes sure that no process outlives the test that started it."""

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
    """Makes orphaned descendants children of this process instead of init (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children() -> set[int]:
    """The pids of the child processes; empty without Linux's /proc.

    Excludes the helpers of Python's `multiprocessing`, the resource tracker and the fork server,
    which run as long as this process.
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
    """Kills all children except the earlier ones, and the descendants of the killed children.

    After `adopt_orphans` no descendant is missed: the children of a killed process, including one
    that it was just starting, are children of this process by the time `waitpid` returns.
    """
    while left := children() - earlier:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _running(pid: int) -> bool:
    """Whether a child is still running; reaps it if it is a zombie."""
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
    """Context manager: fails if processes that were started within it remain, and kills them.

    Args:
      seconds: time to wait for processes that are already terminating.
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
