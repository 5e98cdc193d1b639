"""End-to-end training of a small network with all options beyond the paper at once."""

import dataclasses
import os
import types

import jax
import numpy as np
import pytest
import tiny
from etils import epath
from workdirs import final, lines

from multipath_jax import checkpoints as ckpt
from multipath_jax import main
from multipath_jax.errors import UserError
from multipath_jax.runs import load_run
from multipath_jax.trainer import train

TOTAL = 10
BEYOND = {
    "schedule.kind": "cosine",
    "schedule.warmup": "4 steps",
    "optimizer.nesterov": True,
    "dataset.flip": True,
    "dataset.alternate_flip": True,
    "dataset.shift_mode": "reflect",
    "dataset.cutout": 2,
    "dataset.erase": 0.5,
    "dataset.trivial_augment": True,
    "dataset.eval_flip": True,
    "mixup": 0.2,
    "cutmix": 1.0,
    "label_smoothing": 0.1,
    "ema": 0.9,
    "accumulate": 2,
}


def recipe(data_dir, **changes):
    own = {"train_for": f"{TOTAL} steps", "schedule.boundaries": "", "log_every": "1 step"}
    return tiny.tiny_config(data_dir, **own | {"eval_every": "5 steps"} | changes)


@pytest.fixture(scope="module")
def undisturbed(data_dir, tmp_path_factory):
    """The workdir, config and result of an uninterrupted run."""
    workdir = epath.Path(tmp_path_factory.mktemp("undisturbed"))
    config = recipe(data_dir, **BEYOND)
    return workdir, config, tiny.train(config, workdir)


def test_a_run_that_stops_and_goes_on_is_the_same_run(undisturbed, workdir):
    """Stops during the warm-up, while the decay of the moving average still increases."""
    whole, config, _ = undisturbed
    calls = iter([False] * 2 + [True])
    stopped = tiny.train(config, workdir, should_stop=lambda: next(calls), steps_per_call=3)
    assert stopped.step == 3
    tiny.train(config, workdir)
    setup = tiny.setup_of(config)
    jax.tree.map(np.testing.assert_array_equal, final(workdir, setup), final(whole, setup))
    assert lines(workdir) == lines(whole)


def test_a_run_begins_with_the_warm_up_and_ends_at_the_foot_of_the_cosine(undisturbed):
    rates = [line["learning_rate"] for line in lines(undisturbed[0]) if "learning_rate" in line]
    cosine = [0.25 * (1 + np.cos(np.pi * step / 6)) for step in range(6)]
    assert rates == pytest.approx([0.125, 0.25, 0.375, 0.5, *cosine], rel=1e-6)  # float32


def test_the_average_is_what_is_evaluated_kept_and_started_from(undisturbed):
    workdir, config, result = undisturbed
    setup = tiny.setup_of(config)
    state = final(workdir, setup).state
    measured = setup.evaluate(state.average)
    assert result.test.items() >= measured.items()
    assert result.test.keys() - measured == {"flip_error", "flip_top5_error"}
    assert measured != setup.evaluate(state.variables)
    kept = ckpt.open_existing(workdir)
    weights = kept.restore_weights(state.variables, TOTAL)
    jax.tree.map(np.testing.assert_array_equal, weights, state.average)
    own = config.copy_and_resolve_references()
    own.init_from = str(workdir)
    started, _ = ckpt.initialize_from(own, setup.fresh_carry(1).state.variables)
    best = kept.restore_weights(state.variables, kept.best)
    jax.tree.map(np.testing.assert_array_equal, started, best)


def test_a_run_on_held_out_images_says_so_everywhere(
    tiny_by_name, data_dir, workdir, capsys, monkeypatch
):
    config = recipe(data_dir, **tiny.NAMED, **{"dataset.holdout": 142})
    result = tiny.train(config, workdir)
    assert result.evaluated == "held_out"
    setup = tiny.setup_of(config)
    assert (len(setup.dataset.train), len(setup.dataset.test)) == (1300, 142)
    evaluations = [line for line in lines(workdir) if "held_out/error" in line]
    assert [line["step"] for line in evaluations] == [5, TOTAL]
    assert evaluations[-1]["held_out/error"] == result.test["error"]
    assert not any(key.startswith("test/") for line in lines(workdir) for key in line)
    main._report(result)
    said = capsys.readouterr().out
    assert f"held-out error {result.test['error']:.2f} %  " in said
    assert f"\nheld-out error {result.test['error']:.2f} % (best of the run" in said
    assert "test error" not in said
    main._report(dataclasses.replace(result, best_error=None))  # all errors of the soft steps
    assert "best" not in capsys.readouterr().out
    flags = {"WORKDIR": os.fspath(workdir), "CHECKPOINT": "latest", "TEST_SPLIT": False}
    for flag, value in flags.items():
        monkeypatch.setattr(main, flag, types.SimpleNamespace(value=value))
    monkeypatch.setattr(main.config_flags, "CONFIG", types.SimpleNamespace(value=None))
    assert main._evaluate() == 0
    printed = capsys.readouterr().out
    assert f"step {TOTAL}, digits, 142 training images held out\n" in printed
    assert f"\nerror {result.test['error']:.2f} %\n" in printed
    monkeypatch.setattr(main, "TEST_SPLIT", types.SimpleNamespace(value=True))
    assert main._evaluate() == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].endswith(f"step {TOTAL}, digits test split")
    error = load_run(workdir, "latest").on_test_split().evaluate()["error"]
    assert f"error {error:.2f} %" in printed
    assert not any("differ" in line for line in printed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accumulate": 3}, "among 3 micro-batches on 2 devices; use a multiple of 6"),
        ({"schedule.kind": "cosine", "schedule.boundaries": "5 steps"}, "takes no boundaries"),
        ({"schedule.warmup": "10 steps"}, "must end before"),
        ({"dataset.holdout": 1442}, "leaves none of the 1442 training images"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    changes, message, data_dir, workdir
):
    with pytest.raises(UserError, match=message):
        tiny.train(recipe(data_dir, **changes), workdir)
    assert not workdir.exists()


@pytest.mark.parametrize("key", ["label_smoothing", "mixup", "cutmix"])
def test_labels_of_a_network_with_another_loss_stay_as_they_are(key, data_dir, workdir):
    changes = {"model.name": "BaseCNN-Ensemble", key: 0.1}
    with pytest.raises(UserError, match="defines its own loss"):
        train(recipe(data_dir, **changes), workdir)
    assert not workdir.exists()
