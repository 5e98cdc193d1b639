"""A small network in place of those of the paper."""

import gc

import pytest
import tiny
from etils import epath

from multipath_jax.models import registry


@pytest.fixture(scope="module")
def tiny_by_name():
    """The table of networks has `tiny.Tiny`, for trials and programs, which are given a name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "FAMILIES", tiny.FAMILIES)
        yield


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
