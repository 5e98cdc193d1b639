"""Layers are tested without any promotion of ranks and types."""

import pytest


@pytest.fixture(autouse=True)
def _strictly(strict):
    pass
