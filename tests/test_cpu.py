"""The XLA switch for convolutions on the CPU."""

import os
import subprocess
import sys

import jax
import pytest

from multipath_jax.utils import cpu

OTHER = "--xla_cpu_enable_fast_math=false"

# XLA reads its flags when JAX starts, and ends the process at one that it does not know.
PROGRAM = """
import os
import jax
from multipath_jax import use_fast_cpu_convolutions
from multipath_jax.utils import cpu
use_fast_cpu_convolutions()
print(cpu.convolutions_in_use())
print(os.environ["XLA_FLAGS"])
print(jax.devices()[0].platform)
"""


def run(**environment):
    inherited = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(
        command, env=inherited | environment, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


@pytest.fixture
def flags(monkeypatch):
    """The environment of a process whose XLA_FLAGS are not set."""
    monkeypatch.delenv("XLA_FLAGS")
    return os.environ


def test_jax_starts_with_the_switch():
    said = f"convolutions on the CPU: without YNNPACK (XLA_FLAGS={cpu.SWITCH})"
    assert run() == [said, cpu.SWITCH, "cpu"]


def test_flags_of_the_user_stay():
    said = f"convolutions on the CPU: with YNNPACK, for XLA_FLAGS has no {cpu.SWITCH}"
    assert run(XLA_FLAGS=OTHER) == [said, OTHER, "cpu"]


def test_twice_is_once(flags):
    cpu.use_fast_convolutions()
    cpu.use_fast_convolutions()
    assert flags["XLA_FLAGS"] == cpu.SWITCH


def test_an_empty_value_is_one_of_the_user(flags):
    flags["XLA_FLAGS"] = ""
    cpu.use_fast_convolutions()
    assert flags["XLA_FLAGS"] == ""


def assert_not_used(flags):
    cpu.use_fast_convolutions()
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
