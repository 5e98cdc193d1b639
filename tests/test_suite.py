"""The checks that run with every test: its processes have ended, its memory is limited."""

import mmap
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import memory
import numpy as np
import processes
import pytest

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
# Runs in a new session, and outlives the process that starts it.
DETACHED = ["setsid", "--fork", "sleep", "60"]


def run_detached():
    """Starts a detached process, and returns its pid."""
    earlier = processes.children()
    subprocess.run(DETACHED, check=True)
    (left,) = processes.children() - earlier
    return left


def is_there(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@linux
def test_a_process_that_is_left_fails_the_test_and_is_killed():
    with pytest.raises(pytest.fail.Exception, match="sleep 60"), processes.none_left(seconds=0.2):
        pid = run_detached()
    assert not is_there(pid)


@linux
def test_a_process_that_is_told_to_end_has_time_to():
    with processes.none_left():
        pid = run_detached()
        os.kill(pid, 15)
    assert not is_there(pid)


@linux
def test_nothing_escapes_that_starts_others_while_it_is_killed():
    earlier = processes.children()
    # Each process ends once it has started the next, in a new session and without an environment.
    program = (
        "import os, time\n"
        "for _ in range(2000):\n"
        "    if os.fork():\n"
        "        os._exit(0)\n"
        "    os.setsid()\n"
        "    time.sleep(0.01)\n"
    )
    for _ in range(4):
        subprocess.run([sys.executable, "-c", program], env={}, check=True)
    assert len(processes.children() - earlier) >= 4
    processes.end(earlier)
    assert not processes.children() - earlier


@linux
def test_earlier_processes_are_left_alone():
    with subprocess.Popen(["sleep", "60"]) as earlier:
        try:
            with processes.none_left(seconds=0):
                pass
            processes.end(processes.children())
            assert earlier.poll() is None
        finally:
            earlier.kill()


def fill_pages(size):
    """Fills new pages; for an array, the process may have kept freed memory that is resident."""
    with mmap.mmap(-1, size) as pages:
        np.frombuffer(pages, np.uint8).fill(1)


@linux
def test_a_process_that_grows_over_its_limit_fails_the_test():
    step = 100_000_000
    with (
        pytest.raises(pytest.fail.Exception, match="GB of this process are resident"),
        memory.bounded(limit=memory.peak() + step / 2),
    ):
        fill_pages(memory.peak() - memory.resident() + step)
    with memory.bounded(limit=memory.peak() - step / 4):  # exceeded already before
        pass


@linux
def test_compiled_programs_are_let_go_above_a_bound(monkeypatch):
    monkeypatch.setattr(memory, "_left", 0)

    @jax.jit
    def function(x):
        return x + 1

    function(jnp.ones(3))
    with memory.bounded(cleared_above=memory.LIMIT):
        pass
    assert function._cache_size() == 1
    with memory.bounded(cleared_above=0):
        pass
    assert function._cache_size() == 0
    function(jnp.ones(3))
    with memory.bounded(cleared_above=0):  # little growth since the last release
        pass
    assert function._cache_size() == 1
