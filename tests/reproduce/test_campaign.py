"""Tests of campaigns of a small network on the digits data set, including interrupted ones."""

import itertools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import small
from etils import epath
from workdirs import lines

from multipath_jax import checkpoints
from multipath_jax.errors import Failure, UserError
from multipath_jax.metrics_file import METRICS_FILE
from multipath_jax.models import paper, registry
from multipath_jax.reproduce import campaign as campaign_lib
from multipath_jax.reproduce import pages, tables
from multipath_jax.reproduce.__main__ import main
from multipath_jax.reproduce.ledger import Ledger
from multipath_jax.training.run import Result
from multipath_jax.trials import train_trials
from multipath_jax.utils.stopping import Stopping

CLOCK = {"wall_seconds", "images_per_second", "date"}  # values that differ between runs
SETTINGS = ("dataset.name=digits", "dataset.flip=False", "schedule.learning_rate=0.5",
            "log_every=5 steps", "eval_every=2 epochs", "checkpoint_every=7 steps",
            "tensorboard=off", "compilation_cache=")  # fmt: skip
TOTAL = 66  # six epochs of eleven batches of 128


@pytest.fixture(scope="module", autouse=True)
def tiny_model():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "FAMILIES", small.FAMILIES)
        yield


train_by_threes = partial(train_trials, steps_per_call=3)


def signalled(number, *arguments):
    """Trains with a signal that arrives before the first three steps."""
    signal.raise_signal(number)
    return train_by_threes(*arguments)


def command(folder, data_dir, *more, rows="BaseCNN", trials=1):
    """The arguments of a campaign with six epochs per trial."""
    arguments = ["table2", f"--rows={rows}", f"--trials={trials}", "--epochs=6"]
    arguments += [f"--workdir={folder / 'runs'}", f"--results={folder / 'results'}"]
    return [*arguments, f"--data_dir={data_dir}", *(f"--set={one}" for one in SETTINGS), *more]


def ledger(folder):
    path = folder / "results" / "ledger.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def timeless(entries):
    return [{key: entry[key] for key in entry.keys() - CLOCK} for entry in entries]


@pytest.fixture(scope="module")
def undisturbed(data_dir, tmp_path_factory):
    """The folder of a campaign of one trial that was not interrupted."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert main(command(folder, data_dir)) == 0
    return folder


def runs(folder):
    """The workdirs of the trials."""
    return sorted(epath.Path(path) for path in folder.glob("runs/*/*/seed_*"))


def metrics(folder):
    (workdir,) = runs(folder)
    return lines(workdir)


def test_a_finished_trial_has_its_line(undisturbed):
    (line,) = ledger(undisturbed)
    assert (line["tables"], line["network"], line["column"]) == ([2], "BaseCNN", "cifar10")
    assert (line["seed"], line["epochs"], line["train_for"]) == (0, 6, "6 epochs")
    assert line["recipe"] == "protocol"
    changed = {"dataset.flip": False, "dataset.name": "digits", "schedule.learning_rate": 0.5}
    assert line["changed"] == changed
    assert "flip_error" not in line
    errors = [line["test/error"] for line in metrics(undisturbed) if "test/error" in line]
    assert line["errors"] == errors
    assert line["error_epochs"] == [2.0, 4.0, 6.0]
    assert (line["final_error"], line["best_error"]) == (errors[-1], min(errors))
    # conv 3x3x1x8 + 8, norm 2x8, router 1 on 8 channels to 2, router 2 from 2 paths to 3, head.
    gates = (8 * 16 + 16 + 16 * 2 + 2) + 2 * (8 * 16 + 16 + 16 * 3 + 3)
    assert line["params"] == 80 + 16 + gates + 8 * 8 * 8 * 10 + 10
    assert line["images_per_second"] > 0
    assert 0 < line["wall_seconds"] < 600
    assert set(line["versions"]) == {"jax", "jaxlib", "flax", "optax", "multipath_jax"}
    assert line["config"]["optimizer.weight_decay"] == 5e-4
    (workdir,) = runs(undisturbed)
    assert workdir.name == "seed_0"
    assert workdir.parent.name == "BaseCNN"
    assert workdir.parent.parent.name.startswith("cifar10-6epochs-altered-")


def test_a_run_of_table_4_is_entered_with_all_that_it_measured():
    """Ten-crop errors are measured only at the end; lines without an evaluation have no error."""
    lines = [
        {"step": 10, "train/error": 90.0},
        {"step": 20, "test/error": 60.0, "test/top5_error": 20.0},
        {"step": 40, "test/error": 50.0, "test/top5_error": 15.0, "test/ten_crop_error": 48.0,
         "test/ten_crop_top5_error": 14.0},
    ]  # fmt: skip
    assert campaign_lib.by_column(lines) == {
        "top1": [60.0, 50.0],
        "top5": [20.0, 15.0],
        "top1_10crop": [48.0],
        "top5_10crop": [14.0],
    }


def test_one_trial_of_table_4_where_the_others_have_three(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(campaign_lib, "train_trials", lambda config, *_: asked.append(config) or [])
    for table, rows in (("table4", "ResNet18"), ("table2", "BaseCNN")):
        folders = [f"--workdir={tmp_path}", f"--results={tmp_path}"]
        main([table, f"--rows={rows}", *folders, "--set=compilation_cache="])
    assert [(config.model.name, config.trials) for config in asked] == [
        ("ResNet18", 1),
        ("BaseCNN", 3),
    ]


def test_trials_without_a_result_are_told_from_failures(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(campaign_lib, "train_trials", lambda *_: [])
    assert main(command(tmp_path, tmp_path)) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("0 of 1 trials are done; the others ended without a test error in ")


def test_images_per_second_are_of_the_whole_run():
    logged = [
        {"step": 10, "images_per_second": 50.0},  # 10 batches of 5 images: 1 second
        {"step": 40, "images_per_second": 10.0},  # 30 batches: 15 seconds
        {"step": 40},  # an evaluation only
    ]
    assert campaign_lib.images_per_second(logged, 5) == 12.5  # 200 images in 16 seconds


def test_what_is_done_is_not_done_again(undisturbed, data_dir, tmp_path, monkeypatch, capsys):
    """A trial is skipped if the ledger has it, or if only its entry is missing after a kill."""
    folder = tmp_path / "copy"
    shutil.copytree(undisturbed, folder)
    monkeypatch.setattr(campaign_lib, "train_trials", None)
    before = ledger(folder)
    assert main(command(folder, data_dir)) == 0
    assert ledger(folder) == before
    (folder / "results" / "ledger.jsonl").unlink()
    assert main(command(folder, data_dir)) == 0
    assert timeless(ledger(folder)) == timeless(before)
    assert capsys.readouterr().out.splitlines()[-1] == "1 of 1 trials are done"
    # The ledger suffices, without the workdirs.
    shutil.rmtree(folder / "runs")
    assert main(command(folder, data_dir)) == 0


def test_only_the_seeds_that_are_open_are_trained(undisturbed, data_dir, tmp_path, monkeypatch):
    folder = tmp_path / "copy"
    shutil.copytree(undisturbed, folder)
    asked = []

    def train_trials(config, workdir, should_stop):
        asked.append((config.seed, config.trials, os.fspath(workdir)))
        return [Result(TOTAL, TOTAL, {}, None, [])] * config.trials

    monkeypatch.setattr(campaign_lib, "train_trials", train_trials)
    main(command(folder, data_dir, trials=3))
    (workdir,) = runs(folder)
    assert asked == [(1, 2, os.fspath(workdir.parent))]


@pytest.mark.slow
def test_spent_minutes_stop_at_a_checkpoint_and_the_same_command_goes_on(
    undisturbed, data_dir, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(campaign_lib, "train_trials", train_by_threes)
    for lookups in (6, 3):
        asked = itertools.count()
        with monkeypatch.context() as patch:
            spent = property(lambda _, asked=asked, end=lookups: next(asked) >= end)
            patch.setattr(Stopping, "budget_spent", spent)
            assert main(command(tmp_path, data_dir, "--minutes=60")) == 3
        last = capsys.readouterr().out.splitlines()[-1]
        assert last.startswith(
            "0 of 1 trials are done; the time limit is reached; rerun the command"
        )
        assert ledger(tmp_path) == []
    assert "BaseCNN, CIFAR-10, seed 0, at step " in last
    assert last.endswith(f" of {TOTAL}")
    assert main(command(tmp_path, data_dir)) == 0
    assert timeless(ledger(tmp_path)) == timeless(ledger(undisturbed))
    assert metrics(tmp_path) == metrics(undisturbed)


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)],
)
def test_signals_stop_at_a_checkpoint(data_dir, tmp_path, monkeypatch, capsys, number, status):
    monkeypatch.setattr(campaign_lib, "train_trials", partial(signalled, number))
    assert main(command(tmp_path, data_dir)) == status
    printed = capsys.readouterr().out
    assert "stopped at step 3" in printed
    name = signal.Signals(number).name
    assert (
        f"stopped by {name}; rerun the command to resume with BaseCNN" in printed.splitlines()[-1]
    )


@pytest.mark.slow
def test_a_killed_campaign_ends_like_an_undisturbed_one(undisturbed, data_dir, tmp_path):
    """SIGKILL in the middle of a trial, then the same command."""
    process = subprocess.Popen(
        [sys.executable, small.__file__, *command(tmp_path, data_dir)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=dict(os.environ),
        text=True,
    )
    deadline = time.monotonic() + 120
    written = f"runs/*/*/seed_0/{METRICS_FILE}"
    while not any(path.read_text().count("\n") > 5 for path in tmp_path.glob(written)):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, "the run does not get on"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert ledger(tmp_path) == []
    assert len(metrics(tmp_path)) < len(metrics(undisturbed))
    assert main(command(tmp_path, data_dir)) == 0
    assert timeless(ledger(tmp_path)) == timeless(ledger(undisturbed))
    assert metrics(tmp_path) == metrics(undisturbed)


def test_a_ledger_without_room_is_one_line(undisturbed, data_dir, tmp_path, monkeypatch):
    folder = tmp_path / "copy"
    shutil.copytree(undisturbed, folder)
    before = ledger(folder)
    (folder / "results" / "ledger.jsonl").unlink()
    with monkeypatch.context() as patch:
        patch.setattr("os.write", lambda *_: 3)  # bytes written
        with pytest.raises(
            Failure, match="only a part of the line was written; free disk space and rerun"
        ):
            main(command(folder, data_dir))
    assert ledger(folder) == []
    assert main(command(folder, data_dir)) == 0
    assert timeless(ledger(folder)) == timeless(before)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_holds_up_no_other_row(data_dir, tmp_path, monkeypatch, capsys):
    honest = campaign_lib.train_trials

    def train_trials(config, *more):
        if config.model.name == "BaseCNN":
            config.schedule.learning_rate = 1e30
        return honest(config, *more)

    monkeypatch.setattr(campaign_lib, "train_trials", train_trials)
    assert main(command(tmp_path, data_dir, rows="BaseCNN,WideCNN")) == 1
    assert [line["model"] for line in ledger(tmp_path)] == ["WideCNN"]
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("1 of 2 trials are done; failed: BaseCNN, CIFAR-10: seed_0: the loss")


def test_another_process_is_not_disturbed(undisturbed, data_dir):
    (workdir,) = runs(undisturbed)
    with (
        checkpoints.claimed(workdir.parent),
        pytest.raises(UserError, match="is in use by process"),
    ):
        main(command(undisturbed, data_dir))
    assert main(command(undisturbed, data_dir)) == 0


def test_a_report_trains_nothing(undisturbed, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(campaign_lib, "train_trials", None)
    monkeypatch.setattr(pages.plot, "draw", lambda *_: None)  # drawing takes seconds
    shutil.copytree(undisturbed / "results", "results")
    pathlib.Path("docs").mkdir()
    assert main(["table3", "--report"]) == 0
    printed = capsys.readouterr().out
    assert "ResNet20-2-CC" in printed
    assert printed.endswith("wrote results/tradeoff.png\nwrote docs/results.md\n")
    page = pathlib.Path("docs/results.md").read_text()
    assert "](../results/tradeoff.png)" in page
    assert "6 of 200 epochs" in page
    pathlib.Path("docs/results.md").write_text("# My results\n")
    assert main(["table3", "--report"]) == 0
    assert "left docs/results.md alone" in capsys.readouterr().out
    assert pathlib.Path("docs/results.md").read_text() == "# My results\n"


@pytest.mark.parametrize(
    ("model", "recipe", "platform", "changes", "cadences"),
    [
        ("BaseCNN", "protocol", "cpu", {}, ("1 epoch", "1 epoch")),
        ("BaseCNN", "protocol", "gpu", {}, ("10 epochs", "10 epochs")),
        ("ResNet20", "protocol", "gpu", {}, ("17 epochs", "17 epochs")),  # of 350 epochs
        ("BaseCNN", "fast", "gpu", {}, ("5 epochs", "5 epochs")),
        ("BaseCNN", "protocol", "gpu", {"eval_every": "2 epochs"}, ("2 epochs", "10 epochs")),
        ("BaseCNN", "protocol", "gpu", {"train_for": "3 steps"}, ("1 epoch", "1 epoch")),
        ("ResNet18", "protocol", "gpu", {}, ("1 epoch", "1 epoch")),
    ],
)
def test_epochs_of_a_second_are_not_all_evaluated_and_saved(
    tmp_path, monkeypatch, model, recipe, platform, changes, cadences
):
    row = paper.rows(model=model)[0]
    campaign = tables.campaign(row, tables.runs(row)[0], changes, name=recipe)
    seen = []
    monkeypatch.setattr(campaign_lib, "train_trials", lambda config, *_: [seen.append(config)][:0])
    monkeypatch.setattr(campaign_lib.jax, "default_backend", lambda: platform)
    place = campaign_lib.Place(epath.Path(tmp_path), Ledger(tmp_path))
    campaign_lib.train_seeds(campaign, [4, 5], place, lambda: False)
    assert [(c.eval_every, c.checkpoint_every) for c in seen] == [cadences]
    assert [(c.seed, c.trials) for c in seen] == [(4, 2)]


@pytest.mark.slow
def test_a_trial_by_our_recipe_goes_on_after_a_signal_and_is_entered_apart(
    undisturbed, data_dir, tmp_path, monkeypatch, capsys
):
    """The folder also contains a campaign by the protocol, whose trial is not changed."""
    folder = tmp_path / "copy"
    shutil.copytree(undisturbed, folder)
    ours = command(folder, data_dir, "--recipe=fast", "--set=dataset.alternate_flip=False")

    with monkeypatch.context() as patch:
        patch.setattr(campaign_lib, "train_trials", partial(signalled, signal.SIGTERM))
        assert main(ours) == 143
    assert "resume with BaseCNN, CIFAR-10, fast recipe" in capsys.readouterr().out
    assert len(ledger(folder)) == 1
    assert main(ours) == 0
    before, line = ledger(folder)
    assert before == ledger(undisturbed)[0]
    assert (line["recipe"], line["train_for"], line["epochs"]) == ("fast", "6 epochs", 6)
    assert "dataset.alternate_flip" in line["changed"]
    (workdir,) = folder.glob("runs/fast/*/BaseCNN/seed_0")
    (logged,) = [one for one in lines(epath.Path(workdir)) if "test/flip_error" in one]
    assert line["flip_error"] == logged["test/flip_error"]
    assert line["final_error"] == logged["test/error"]
    printed = capsys.readouterr().out
    assert "NOT the fast recipe's figures" in printed
    assert "NOT the protocol's figures" not in printed
    assert main(ours) == 0
    assert len(ledger(folder)) == 2
