"""Tests that lines of the ledger stay intact with concurrent writers, kills and full disks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from made_up import line

from multipath_jax.config import keys as config_lib
from multipath_jax.models import paper
from multipath_jax.reproduce import campaign, report, tables
from multipath_jax.reproduce import ledger as ledger_lib
from multipath_jax.reproduce.ledger import Ledger

RESULTS = Path(__file__).parents[2] / "results"

# Imports once, then forks 8 writers. All write the seeds 0 to 9, and each ten different seeds.
WRITERS = """
import json, os, sys
from multipath_jax.reproduce.ledger import Ledger
like = json.loads(sys.argv[2])
children = []
for writer in range(8):
    child = os.fork()
    if not child:
        for seed in (*range(10), *range(100 * (writer + 1), 100 * (writer + 1) + 10)):
            Ledger(sys.argv[1]).append(like | {"seed": seed, "padding": "x" * 20000})
        os._exit(0)
    children.append(child)
assert all(os.waitpid(child, 0)[1] == 0 for child in children)
"""


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "results")


def test_eight_writers_lose_no_line_and_double_none(ledger):
    like = json.dumps(line("BaseCNN", "cifar10", 0, 9.0))
    command = [sys.executable, "-c", WRITERS, str(ledger.path.parent), like]
    subprocess.run(command, check=True)
    own = [100 * (writer + 1) + seed for writer in range(8) for seed in range(10)]
    assert sorted(found["seed"] for found in ledger.lines()) == [*range(10), *own]
    assert {len(found["padding"]) for found in ledger.lines()} == {20000}


def test_a_line_cut_short_is_passed_over_and_kept(ledger):
    first, second, third = (line("BaseCNN", "cifar10", seed, 9.0) for seed in range(3))
    ledger.append(first)
    ledger.append(second)
    whole = ledger.path.read_bytes()
    for length in (1, 50, len(whole) // 2 - 2):
        ledger.path.write_bytes(whole + whole[:length])
        assert ledger.lines() == [first, second]
        assert ledger.append(third)
        assert ledger.lines() == [first, second, third]
        assert whole[:length] in ledger.path.read_bytes().splitlines()


def test_a_last_line_without_its_end_is_kept(ledger):
    first, second = (line("BaseCNN", "cifar10", seed, 9.0) for seed in range(2))
    ledger.append(first)
    ledger.path.write_bytes(ledger.path.read_bytes().rstrip(b"\n"))
    assert ledger.lines() == [first]
    assert ledger.append(second)
    assert ledger.lines() == [first, second]


def test_a_trial_is_entered_once(ledger):
    assert ledger.append(line("BaseCNN", "cifar10", 0, 9.0))
    assert not ledger.append(line("BaseCNN", "cifar10", 0, 8.0))
    others = [
        line("BaseCNN", "cifar10", 1, 8.0),
        line("WideCNN", "cifar10", 0, 8.0),
        line("BaseCNN", "cifar10", 0, 8.0, epochs=20.0),
        line("BaseCNN", "cifar10", 0, 8.0, changes={"batch_size": "64"}),
        line("BaseCNN", "cifar10", 0, 8.0, changes={"dtype": "bfloat16"}),
        line("BaseCNN", "cifar10", 0, 8.0, recipe="fast"),
    ]
    assert all(ledger.append(other) for other in others)
    again = line("BaseCNN", "cifar10", 0, 8.0, changes={"eval_every": "2 epochs"})
    assert not ledger.append(again)  # eval_every changes no result


def test_keys_that_come_and_go_change_no_identity(ledger, monkeypatch):
    """A key in the lines no longer exists, and the program has keys that the lines do not have."""
    older = line("BaseCNN", "cifar10", 0, 9.0)
    changed = line("BaseCNN", "cifar10", 1, 9.0, changes={"batch_size": "64"})
    for entry in (older, changed):
        entry["config"]["optimizer.gone"] = entry["config"].pop("optimizer.weight_decay")
        ledger.append(entry)

    def default_config():
        config = default()
        with config.unlocked():
            config.optimizer.later = 3.0
        return config

    default = tables.config_lib.default_config
    for module in (tables.config_lib, tables.recipes):
        monkeypatch.setattr(module, "default_config", default_config)
    row = paper.rows(model="BaseCNN")[0]
    again = tables.campaign(row, "cifar10", {})
    assert again.config.optimizer.later == 3.0
    assert campaign.open_seeds(again, 2, ledger) == [1]
    again = tables.campaign(row, "cifar10", {"batch_size": "64"})
    assert campaign.open_seeds(again, 2, ledger) == [0]
    assert report.figures(ledger.lines(), row, "cifar10").errors == [9.0]


@pytest.mark.parametrize("entry", Ledger(RESULTS).lines(), ids=lambda entry: entry["date"])
def test_a_recipe_is_still_what_trials_by_its_name_were_trained_by(entry):
    """A recipe whose values change needs a new name: errors in the ledger are of the old values."""
    row = (*paper.rows(model=entry["model"]), paper.unprinted(entry["model"]))[0]
    column, recipe = entry["column"], entry["recipe"]
    whole = tables.recipe(row, column, recipe).train_for
    epochs = None if entry["train_for"] == whole else entry["epochs"]
    made = tables.campaign(row, column, {}, epochs, recipe)
    wanted = config_lib.flatten(made.of_seed(entry["seed"])) | entry["changed"]
    known = entry["config"].keys() & wanted.keys() - {"trials"}
    assert {key: entry["config"][key] for key in known} == {key: wanted[key] for key in known}
    assert {"schedule.learning_rate", "train_for", "batch_size"} <= known


def test_a_full_disk_leaves_the_file_as_it_was(ledger, monkeypatch):
    ledger.append(line("BaseCNN", "cifar10", 0, 9.0))
    before = ledger.path.read_bytes()
    honest = os.write
    with monkeypatch.context() as patch:
        patch.setattr(ledger_lib.os, "write", lambda file, text: honest(file, text[:100]))
        with pytest.raises(OSError, match="a part of the line"):
            ledger.append(line("BaseCNN", "cifar10", 1, 9.0))
    assert ledger.path.read_bytes() == before


@pytest.mark.parametrize("spoilt", [b"<<<<<<< ours", b"[]", b"{}", b'{"model": [], "seed": 0}'])
def test_what_is_no_trial_is_named_once_passed_over_and_kept(ledger, capsys, spoilt):
    first, second = (line("BaseCNN", "cifar10", seed, 9.0) for seed in range(2))
    ledger.append(first)
    ledger.path.write_bytes(ledger.path.read_bytes() + b"\n" + spoilt + b"\n")
    assert ledger.lines() == [first]
    assert ledger.append(second)
    assert ledger.lines() == [first, second]
    assert capsys.readouterr().err.count("is not a trial, and is ignored") == 1
    assert spoilt in ledger.path.read_bytes().splitlines()
    assert Ledger(ledger.path.parent / "none").lines() == []


def test_a_trial_without_its_error_is_none(ledger, capsys):
    broken = line("BaseCNN", "cifar10", 0, 9.0)
    del broken["final_error"]
    ledger.append(broken)
    assert ledger.lines() == []
    assert "is not a trial" in capsys.readouterr().err
