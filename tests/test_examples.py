"""The examples run where a run of `make train` would be; each `Trainer` trains a few steps."""

import re
import runpy
import sys
from pathlib import Path

import documents
import jax.numpy as jnp
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


@pytest.mark.slow  # trains to an accuracy
def test_a_network_of_ones_own(at_home, capsys):
    names = run("own_network")
    assert names["accuracy"] > 0.9  # seeds 0, 1 and 2: 0.961, 0.972 and 0.955
    # Float32 sums of three terms in another order.
    np.testing.assert_allclose(names["by_hand"], names["by_layer"], rtol=1e-5, atol=1e-6)
    means = [names["gates"][0, names["digits"].test.labels == digit].mean(0) for digit in (1, 2)]
    assert abs(means[0] - means[1]).max() > 0.3  # seeds 0, 1 and 2: 0.8, 0.83 and 0.54
    printed = capsys.readouterr().out
    assert "gates (3, 355, 3)" in printed
    assert "BaseCNN-2-CC after 1 steps" in printed


def run(name):
    """Runs a script in the working directory; gives the names that it leaves."""
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


@pytest.fixture
def few_steps(at_home, monkeypatch):
    """Trains one step in a script's first run, two in its second, three in its third."""
    documents.train_shortly(monkeypatch, fits=3)


def test_a_router_of_ones_own(few_steps, capsys):
    names = run("own_router")
    assert names["result"].step == 1
    assert names["gates"].shape == (2, 100, 2)
    assert "mean gates of router 2" in capsys.readouterr().out


@pytest.mark.slow
def test_arrays_of_ones_own(few_steps):
    names = run("own_arrays")
    assert names["result"].step == 1
    assert names["trainer"].config.dataset.name == "own:arrays"


@pytest.mark.slow
def test_an_optimizer_of_ones_own(few_steps, capsys):
    run("own_optimizer")
    errors = re.findall(r"^(adamw|optax): error (.*) %$", capsys.readouterr().out, re.MULTILINE)
    assert [name for name, _ in errors] == ["adamw", "optax"]


@pytest.mark.slow
def test_a_loss_of_ones_own(few_steps):
    names = run("own_loss")
    assert names["result"].step == 1
    losses = names["squared_hinge"](jnp.array([[2.0, -2.0], [0.0, 0.0]]), jnp.array([0, 0]))
    np.testing.assert_array_equal(losses, [0.0, 2.0])


@pytest.mark.slow
def test_a_sweep(few_steps, capsys):
    rows = run("sweep")["rows"]
    assert [rate for rate, *_ in rows] == [0.01, 0.05, 0.2]
    table = capsys.readouterr().out.splitlines()[-4:]
    assert table[0].split() == ["rate", "loss", "error"]
    assert [line.split()[0] for line in table[1:]] == ["0.01", "0.05", "0.2"]


@pytest.mark.slow
@pytest.mark.parametrize("holdout", [0, 300])
def test_growth(holdout, at_home, monkeypatch, capsys):
    """From a network of two paths: trained on as it is, and grown to three."""
    documents.train_shortly(monkeypatch, fits=3)
    names = ["BaseCNN-3-CC"] if holdout else ["BaseCNN-2-CC", "BaseCNN-3-CC"]
    flags = ["--weights=runs/digits", f"--networks={','.join(names)}", "--dataset=digits"]
    monkeypatch.setattr(sys, "argv", ["grow.py", *flags, f"--holdout={holdout}"])
    rows = run("grow")["rows"]
    assert [row[0] for row in rows] == names
    heading, *lines = capsys.readouterr().out.splitlines()[-1 - len(names) :]
    columns = ["held-out", "error", "0.003"] if holdout else ["test", "error", "before"]
    assert heading.split()[:3] == columns
    assert {len(line.split()) for line in lines} == ({4} if holdout else {6})


def test_all_examples_are_run():
    run_here = set(re.findall(r"run\(\"(\w+)\"\)", Path(__file__).read_text()))
    assert {path.stem for path in EXAMPLES.glob("*.py")} == run_here
