"""Tests of the command line of `multipath_jax.reproduce`, with the networks of the paper."""

import os
import subprocess
import sys

import numpy as np
import pytest

from multipath_jax.data import load_dataset
from multipath_jax.errors import UserError
from multipath_jax.models import paper
from multipath_jax.reproduce import smoke
from multipath_jax.reproduce.__main__ import main
from multipath_jax.reproduce.ledger import Ledger

BAD = {
    "no table": ([], "table"),
    "unknown table": (["table5"], "table5"),
    "unknown row": (["table2", "--rows=BaseCNN-2-CD"], "BaseCNN-2-C"),
    "unknown flag": (["table2", "--trails=3"], "--trails=3"),
    "no trials": (["table2", "--trials=0"], "--trials=0"),
    "no minutes": (["table2", "--minutes=0"], "--minutes=0"),
    "minutes that are none": (["table2", "--minutes=nan"], "--minutes=nan"),
    "too many epochs": (["table2", "--epochs=300"], "200"),
    "unknown key": (["table2", "--set=batch=3"], "batch_size"),
    "unknown option": (["table2", "--set=model.options=paths_=3"], "paths_"),
    "one column of a run": (["table4", "--rows=ResNet18:top5"], "is trained for imagenet"),
    "unknown recipe": (["table2", "--recipe=quick"], "--recipe"),
    "a recipe of other data": (["table4", "--recipe=fast"], "only for CIFAR, not for table4"),
    "a column without it": (
        ["table2", "--recipe=fast", "--rows=BaseCNN-2-CC:cifar10_350"],
        "is trained for cifar10, not",
    ),
    "too many epochs of ours": (["table2", "--recipe=fast", "--epochs=31"], "the recipe's 10"),
    "held-out images": (["table2", "--set=dataset.holdout=5000"], "errors on test splits"),
    "both": (["table2", "--smoke", "--report"], "--smoke"),
    "a report of epochs": (["table2", "--report", "--epochs=3"], "--report shows all trials"),
    "a report of changes": (["table2", "--report", "--set=batch_size=3"], "--report shows all"),
    "no row": (["table2", "--rows="], "--rows= names no row"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_an_error_and_writes_nothing(name, tmp_path, monkeypatch):
    arguments, message = BAD[name]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        main(arguments)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_error_is_one_line_and_status_2(tmp_path):
    found = subprocess.run(
        [sys.executable, "-m", "multipath_jax.reproduce", "table2", "--rows=BaseCNM"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    said = "error: --rows: table2 has no row 'BaseCNM'; the nearest is BaseCNN\n"
    assert (found.returncode, found.stdout, found.stderr) == (2, "", said)


def test_a_sample_is_of_enlarged_digits_where_cifar10_is_not(tmp_path):
    assert smoke.prepare(tmp_path, "") == "digits"
    assert smoke.prepare(tmp_path, "") == "digits"  # an existing sample is kept
    found, digits = load_dataset("sample", tmp_path), load_dataset("digits", tmp_path)
    assert found.train.images.shape == (32, 32, 32, 3)
    assert found.test.images.shape == (16, 32, 32, 3)
    np.testing.assert_array_equal(
        found.test.images[3, ::4, ::4], digits.test.images[3].repeat(3, -1)
    )
    np.testing.assert_array_equal(found.train.images[5, 3::4, 3::4, :1], digits.train.images[5])
    np.testing.assert_array_equal(found.train.labels, digits.train.labels[:32])


@pytest.mark.slow
@pytest.mark.parametrize("table", [2, 3, 4])
def test_every_row_trains(table, tmp_path):
    command = [sys.executable, "-m", "multipath_jax.reproduce", f"table{table}", "--smoke"]
    # Without the flags of the tests, which reduce optimization: CapsNet would take minutes.
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    subprocess.run([*command, f"--workdir={tmp_path}"], env=environment, check=True)
    trained = {line["model"]: line for line in Ledger(tmp_path / "results").lines()}
    assert list(trained) == [row.model for row in paper.rows(table)]
    assert {line["train_for"] for line in trained.values()} == {"3 steps"}
    assert all("dataset.name" in line["changed"] for line in trained.values())
    assert all(0 <= line["final_error"] <= 100 for line in trained.values())
