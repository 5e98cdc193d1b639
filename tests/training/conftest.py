"""Fixtures for tests with a small network instead of those of the paper."""

import gc

import pytest
import tiny
from etils import epath

from multipath_jax.models import registry


@pytest.fixture(scope="module")
def tiny_by_name():
    """Registers `tiny.Tiny` for trials and programs, which create networks by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "FAMILIES", tiny.FAMILIES)
        yield


@pytest.fixture
def workdir(tmp_path):
    return epath.Path(tmp_path) / "run"


@pytest.fixture
def collected():
    """Collects garbage after tests in which Orbax fails.

    Orbax leaves coroutines behind, which cause warnings when they are deleted. These warnings must
    appear in the test that expects them, not in a later one.
    """
    yield
    gc.collect()
