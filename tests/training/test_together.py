"""Connecting processes: the port, cluster detection, and the error of a failed start."""

import os
import subprocess
import sys

import jax
import pytest
from jax._src import cloud_tpu_init

from multipath_jax.parallel import processes

ALONE = """
import sys
from multipath_jax.parallel import processes
processes.TOGETHER = 2
processes.initialize("127.0.0.1:1", 1, 2)
"""


@pytest.fixture
def joined(monkeypatch):
    """Mocks `jax.distributed.initialize` and collects the arguments of its call."""
    found = {}
    monkeypatch.setattr(jax.distributed, "initialize", found.update)
    monkeypatch.delenv("JAX_COORDINATOR_PORT", raising=False)
    yield found
    os.environ.pop("JAX_COORDINATOR_PORT", None)


def test_an_address_of_the_users_own_ends_all_detection(joined, monkeypatch):
    monkeypatch.setattr(cloud_tpu_init, "running_in_cloud_tpu_vm", True)
    processes.initialize("host:1234", 1, 2)
    assert joined.pop("initialization_timeout") > processes.TOGETHER
    assert joined == {
        "coordinator_address": "host:1234",
        "process_id": 1,
        "num_processes": 2,
        "cluster_detection_method": "deactivate",
    }
    assert "JAX_COORDINATOR_PORT" not in os.environ


@pytest.mark.parametrize(
    ("on_tpu", "users", "port"),
    [(True, None, "8476"), (True, "9999", "9999"), (False, None, None), (False, "9999", "9999")],
)
def test_tpu_vms_meet_at_the_port_that_is_open(joined, monkeypatch, on_tpu, users, port):
    monkeypatch.setattr(cloud_tpu_init, "running_in_cloud_tpu_vm", on_tpu)
    if users:
        monkeypatch.setenv("JAX_COORDINATOR_PORT", users)
    processes.initialize("auto", None, None)
    assert joined.keys() == {"initialization_timeout"}
    assert os.environ.get("JAX_COORDINATOR_PORT") == port


def test_a_start_that_does_not_come_together_says_what_to_check():
    done = subprocess.run(
        [sys.executable, "-c", ALONE], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: --distributed=127.0.0.1:1: the processes did not connect")
    assert "all 2 run, each with a --process_id of its own" in line
    assert "firewall blocks port 1 of process 0" in line
