"""A small network in place of those of the paper."""

import gc

import pytest
import tiny
from etils import epath

from multipath_jax.training import setup


@pytest.fixture
def tiny_model(monkeypatch):
    """Every name of a network is that of `tiny.Tiny`."""
    monkeypatch.setattr(setup, "create_model", tiny.create_model)


@pytest.fixture
def workdir(tmp_path):
    return epath.Path(tmp_path) / "run"


@pytest.fixture
def collected():
    """For tests in which Orbax fails: it leaves coroutines behind, which complain at their end.

    That end is to come in the test that expects it, not in a later one.
    """
    yield
    gc.collect()
