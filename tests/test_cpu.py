"""Settings for training on CPUs."""

import os
import platform
import subprocess
import sys

import jax
import pytest

from multipath_jax.utils import cpu

OTHER = "--xla_cpu_enable_fast_math=false"

# Run in a subprocess: XLA reads its flags when JAX starts, and an unknown flag ends the process.
PROGRAM = """
import os
import jax
from multipath_jax import tune_cpu
from multipath_jax.utils import cpu
tune_cpu()
print(cpu.convolutions_in_use())
print(os.environ["XLA_FLAGS"])
print(jax.devices()[0].platform)
"""

# Allocates in a thread, as XLA does: by default, glibc uses separate heaps for other threads.
MEMORY = """
import ctypes, pathlib, resource, sys, threading
from multipath_jax import tune_cpu
from multipath_jax.utils.cpu import release_memory
if sys.argv[1] == "tuned":
    tune_cpu()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

def step():
    for size in (20_000_000, 200_000_000):
        buffer = libc.malloc(size)
        libc.memset(buffer, 1, size)
        libc.free(buffer)

def resident():
    return resource.getpagesize() * int(pathlib.Path("/proc/self/statm").read_text().split()[1])

def steps():
    before = resident()
    step()
    print(resident() - before)
    release_memory()
    print(resident() - before)

thread = threading.Thread(target=steps)
thread.start()
thread.join()
"""


def run(program=PROGRAM, *arguments, **environment):
    set_by_us = ("XLA_FLAGS", "MALLOC_", "GLIBC_TUNABLES")
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(set_by_us)}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def kept(*arguments, **environment):
    """The bytes that remain when a step has freed its buffers, and after `release_memory`."""
    return [*map(int, run(MEMORY, *arguments, **environment))]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc")
def test_buffers_are_kept_for_the_next_step():
    # The process keeps the larger buffer of 200 MB; without the settings, only a few pages.
    remaining, released = kept("tuned")
    assert remaining > 199e6
    assert released < 5e6
    assert max(kept("not tuned")) < 5e6
    assert max(kept("tuned", MALLOC_ARENA_MAX="2")) < 5e6


@pytest.fixture
def flags(monkeypatch):
    """The environment variables of this process, without XLA_FLAGS."""
    monkeypatch.delenv("XLA_FLAGS")
    return os.environ


def test_jax_starts_with_the_switch():
    said = f"convolutions on the CPU: without YNNPACK (XLA_FLAGS={cpu.SWITCH})"
    assert run() == [said, cpu.SWITCH, "cpu"]


def test_flags_of_the_user_stay():
    said = f"convolutions on the CPU: with YNNPACK, for XLA_FLAGS has no {cpu.SWITCH}"
    assert run(XLA_FLAGS=OTHER) == [said, OTHER, "cpu"]


def test_twice_is_once(flags):
    cpu.tune()
    cpu.tune()
    assert flags["XLA_FLAGS"] == cpu.SWITCH


def test_an_empty_value_is_one_of_the_user(flags):
    flags["XLA_FLAGS"] = ""
    cpu.tune()
    assert flags["XLA_FLAGS"] == ""


def assert_not_used(flags):
    cpu.tune()
    assert "XLA_FLAGS" not in flags
    assert cpu.convolutions_in_use() is None


@pytest.mark.parametrize("platforms", ["cuda", "tpu", "cuda,cpu"])
def test_not_on_accelerators(flags, monkeypatch, platforms):
    monkeypatch.setattr(type(jax.config), "jax_platforms", platforms)
    assert_not_used(flags)


def test_not_where_an_accelerator_may_be_found(flags, monkeypatch):
    monkeypatch.setattr(type(jax.config), "jax_platforms", "")
    monkeypatch.setattr(cpu.metadata, "entry_points", lambda group: [group])
    assert_not_used(flags)


def test_not_where_jaxlib_does_not_know_it(flags, monkeypatch, tmp_path):
    (tmp_path / "libjax_common.so").write_bytes(b"xla_cpu_experimental_ynn_fusion_type")
    monkeypatch.setattr(cpu.jaxlib, "__file__", str(tmp_path / "__init__.py"))
    assert_not_used(flags)
