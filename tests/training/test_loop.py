"""End-to-end training of a small routed network on the digits data set."""

import pathlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from etils import epath
from workdirs import assert_same_end, final, lines

from multipath_jax import checkpoints as ckpt
from multipath_jax import curves
from multipath_jax.config import keys as config_lib
from multipath_jax.errors import UserError
from multipath_jax.metrics_file import METRICS_FILE
from multipath_jax.training import run as run_lib
from multipath_jax.training.hooks import CURVES_FILE
from multipath_jax.training.setup import Setup

TOTAL = 66  # six epochs of eleven batches of 128 images; there are 1,442 training images


def files(folder):
    paths = pathlib.Path(folder).rglob("*")
    return {path: path.read_bytes() for path in paths if path.is_file()}


@pytest.fixture(scope="module")
def undisturbed(data_dir, tmp_path_factory):
    """The workdir, config and result of an uninterrupted run."""
    workdir = epath.Path(tmp_path_factory.mktemp("undisturbed"))
    config = tiny.tiny_config(data_dir)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("multipath_jax.trainer.curves", curves)
        return workdir, config, tiny.train(config, workdir)


def test_a_run_learns_and_writes(undisturbed):
    workdir, config, result = undisturbed
    assert (result.step, result.total) == (TOTAL, TOTAL)
    logged = lines(workdir)
    assert [line["step"] for line in logged] == sorted(
        {*range(5, TOTAL, 5), TOTAL, *range(22, TOTAL, 22)}
    )
    losses = [line["train/loss"] for line in logged if "train/loss" in line]
    # With seeds 0 to 2, the loss fell from 2.2 (log 10 = 2.3) to 0.43 to 0.53; the final test error
    # was 4.8 to 7.9 %.
    assert losses[0] > 1.5
    assert losses[-1] < 0.65
    assert result.test["error"] < 11
    assert result.best_error <= result.test["error"]
    assert logged[-1]["test/error"] == result.test["error"]
    assert logged[-1]["learning_rate"] == pytest.approx(0.05)  # decayed from 0.5
    shares = [logged[-1][f"routing/router_2/share_{j}"] for j in (1, 2, 3)]
    assert sum(shares) == pytest.approx(1, abs=1e-5)
    for path in result.paths:
        assert path.exists()
    assert {path.name for path in result.paths} == {ckpt.FOLDER, METRICS_FILE, CURVES_FILE}
    assert config_lib.read_config(workdir / ckpt.CONFIG_FILE) == config


def test_a_checkpoint_measures_as_the_run_did(undisturbed):
    workdir, config, result = undisturbed
    setup = tiny.setup_of(config)
    carry = final(workdir, setup)
    assert setup.evaluate(carry.state.variables) == result.test


def test_a_run_that_stops_and_goes_on_is_the_same_run(undisturbed, workdir, capsys):
    whole, config, result = undisturbed
    fit = partial(tiny.train, config, workdir, steps_per_call=3)
    first = fit(should_stop=lambda: True)
    assert (first.step, first.test) == (3, {})  # step 3 is neither logged nor evaluated
    calls = iter([False] * 8 + [True])
    second = fit(should_stop=lambda: next(calls))
    assert 3 < second.step < TOTAL
    last = fit()
    printed = capsys.readouterr().out
    assert "stopped at step 3; rerun the command to resume" in printed
    assert f"resuming at step {second.step} of" in printed
    assert (last.step, last.test, last.best_error) == (TOTAL, result.test, result.best_error)
    assert_same_end(workdir, whole)


def test_an_evaluation_saves_only_the_best_so_far(data_dir, workdir, monkeypatch):
    errors = iter([50.0, 60.0, 50.0, 40.0, 45.0])
    monkeypatch.setattr(
        "multipath_jax.training.setup.make_evaluator",
        lambda *_: lambda _: {"loss": 1.0, "error": next(errors)},
    )
    never = {"schedule.boundaries": "", "checkpoint_every": "100 epochs"}
    config = tiny.tiny_config(data_dir, train_for="5 steps", eval_every="1 step", **never)
    saved, save = [], run_lib.Run.save
    monkeypatch.setattr(
        run_lib.Run, "save", lambda run, e: saved.append((run.step, e)) or save(run, e)
    )
    tiny.train(config, workdir)
    assert saved == [(1, 50.0), (3, 50.0), (4, 40.0), (5, 45.0)]  # step 5 is the end of the run
    assert ckpt.open_existing(workdir).best == 4


def test_a_run_that_has_ended_is_left_alone(undisturbed, capsys):
    workdir, config, result = undisturbed
    before = lines(workdir)
    again = tiny.train(config, workdir)
    assert "has ended at step 66" in capsys.readouterr().out
    assert again.test == result.test
    assert lines(workdir) == before


def test_a_run_keeps_the_initial_weights_that_it_began_with(undisturbed, data_dir, capsys):
    workdir, _, _ = undisturbed
    before = (workdir / ckpt.CONFIG_FILE).read_text()
    tiny.train(tiny.tiny_config(data_dir, init_from="/elsewhere"), workdir)
    said = "init_from: '' -> '/elsewhere': no effect on a run that has begun\n"
    assert said in capsys.readouterr().out
    assert (workdir / ckpt.CONFIG_FILE).read_text() == before


def test_a_loss_that_is_not_finite_stops_the_run(data_dir, workdir):
    config = tiny.tiny_config(
        data_dir, **{"schedule.learning_rate": 1e30, "checkpoint_every": "1 step"}
    )
    with pytest.raises(run_lib.TrainingFailed, match=r"loss of step \d+ is not finite") as caught:
        tiny.train(config, workdir)
    step = int(str(caught.value).split("step ")[1].split()[0])
    assert 1 < step < 10
    checkpoints = ckpt.Checkpoints(workdir)
    assert checkpoints.latest < step
    kept = checkpoints.restore(tiny.setup_of(config).abstract_carry, checkpoints.latest)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(kept))
    assert f"step {checkpoints.latest} is kept" in str(caught.value)


def test_a_weight_that_is_not_finite_is_never_saved(data_dir, workdir, monkeypatch):
    """The loss is still finite in the step whose update makes a weight infinite."""
    honest = Setup.fresh_carry

    def broken(self, seed):
        carry = honest(self, seed)
        bias = carry.state.params["head"]["bias"].at[0].set(jnp.inf)
        params = carry.state.params | {"head": carry.state.params["head"] | {"bias": bias}}
        return carry._replace(state=carry.state.replace(params=params))

    monkeypatch.setattr(Setup, "fresh_carry", broken)
    monkeypatch.setattr(run_lib.Run, "advance", lambda run, *_: setattr(run, "step", 1))
    config = tiny.tiny_config(data_dir, checkpoint_every="1 step", log_every="60 steps")
    with pytest.raises(run_lib.TrainingFailed, match=r"weight after step 1 .*no checkpoint"):
        tiny.train(config, workdir)
    assert ckpt.Checkpoints(workdir).latest is None


def test_another_recipe_is_refused_and_nothing_is_touched(undisturbed, data_dir):
    workdir, _, _ = undisturbed
    before = files(workdir)
    with pytest.raises(UserError, match="batch_size: 128 -> 64"):
        tiny.train(tiny.tiny_config(data_dir, batch_size=64), workdir)
    assert files(workdir) == before


def test_less_than_a_step_a_call_is_refused(data_dir, workdir):
    with pytest.raises(UserError, match="steps_per_call=0 must be at least 1"):
        tiny.train(tiny.tiny_config(data_dir), workdir, steps_per_call=0)
    assert not workdir.exists()


def test_a_run_starts_from_anothers_weights(undisturbed, data_dir, workdir, capsys):
    source, _, result = undisturbed
    changes = {"init_from": str(source), "train_for": "1 step", "schedule.boundaries": ""}
    config = tiny.tiny_config(data_dir, **changes, **{"schedule.learning_rate": 1e-6})
    started = tiny.train(config, workdir)
    printed = capsys.readouterr().out
    assert f"starting from the weights of {source}" in printed
    assert "missing there, so fresh: none" in printed
    assert "of another shape, so fresh: none" in printed
    # At this learning rate, one step changes almost nothing but BatchNorm's statistics.
    assert started.test["error"] == pytest.approx(result.best_error, abs=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 1500}, "is larger than"),
        ({"batch_size": 127}, "does not divide"),
        ({"train_for": "3 epochs"}, "past the end"),
        ({"dataset.name": "digitz"}, "digitz"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    data_dir, workdir, changes, message
):
    with pytest.raises(UserError, match=message):
        tiny.train(tiny.tiny_config(data_dir, **changes), workdir)
    assert not workdir.exists()
