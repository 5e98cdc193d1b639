"""Limits the memory of the test processes."""

import contextlib
import gc
import pathlib
import re

import jax
import pytest

from multipath_jax.utils.cpu import release_memory

# Bytes of resident memory: the limit of a process, and the amount above which compiled programs are
# released after a test. The difference is the room for a single test.
LIMIT = 2.0e9
CLEARED_ABOVE = 1.2e9
# Growth in bytes since the last release that is required for the next one: some memory cannot be
# released, and after a release the next test has to trace and compile again.
GROWTH = 0.2e9

_left = 0  # resident bytes after the last release


def _bytes(field: str) -> int:
    """A field of the status of this process, in bytes; 0 without Linux's /proc."""
    path = pathlib.Path("/proc/self/status")
    found = path.exists() and re.search(rf"^{field}:\s+(\d+) kB", path.read_text(), re.MULTILINE)
    return 1024 * int(found[1]) if found else 0


def resident() -> int:
    """The resident memory of this process in bytes."""
    return _bytes("VmRSS")


def peak() -> int:
    """The peak of the resident memory of this process in bytes."""
    return _bytes("VmHWM")


def release() -> None:
    """Deletes compiled programs, and returns their memory to the operating system."""
    global _left
    jax.clear_caches()
    gc.collect()
    # The memory that the compiler has freed is fragmented; glibc returns it only on request.
    release_memory()
    _left = resident()


@contextlib.contextmanager
def bounded(limit: float = LIMIT, cleared_above: float = CLEARED_ABOVE):
    """Context manager: releases compiled programs if memory exceeds ``cleared_above`` at the end.

    Fails if the peak memory exceeds ``limit`` and did not before.
    """
    earlier = peak()
    yield
    if resident() > max(cleared_above, _left + GROWTH):
        release()
    if earlier <= limit < peak():
        pytest.fail(f"{peak() / 1e9:.2f} GB of this process are resident", pytrace=False)
