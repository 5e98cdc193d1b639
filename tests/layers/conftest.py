"""Tests layers without implicit promotion of ranks or types."""

import pytest


@pytest.fixture(autouse=True)
def _strictly(strict):
    pass
