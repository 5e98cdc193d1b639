"""The examples run as they stand, where a run of `make train` would be."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def at_home(digits_run, tmp_path, monkeypatch):
    """A working directory with ``runs/digits``, and the digits where TFDS looks for them."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "digits").symlink_to(digits_run)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(digits_run.parent / "tfds"))


def test_a_network_of_ones_own(at_home, capsys):
    names = runpy.run_path(str(EXAMPLES / "own_network.py"))
    assert names["accuracy"] > 0.9  # seeds 0, 1 and 2: 0.961, 0.972 and 0.955
    # Float32 sums of three terms in another order.
    np.testing.assert_allclose(names["by_hand"], names["by_layer"], rtol=1e-5, atol=1e-6)
    means = [names["gates"][0, names["digits"].test.labels == digit].mean(0) for digit in (1, 2)]
    assert abs(means[0] - means[1]).max() > 0.3  # seeds 0, 1 and 2: 0.8, 0.83 and 0.54
    printed = capsys.readouterr().out
    assert "gates (3, 355, 3)" in printed
    assert "BaseCNN-2-CC after 1 steps" in printed


def test_all_examples_are_run():
    assert {path.name for path in EXAMPLES.glob("*.py")} == {"own_network.py"}
