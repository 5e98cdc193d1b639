"""Hooks of the training loop: their order, their arguments, and failures."""

import pytest
import tiny
from workdirs import assert_same_end

from multipath_jax import checkpoints as ckpt
from multipath_jax import metrics_file
from multipath_jax.errors import UserError
from multipath_jax.parallel import processes
from multipath_jax.trainer import Trainer
from multipath_jax.training import hooks as hooks_lib
from multipath_jax.training import run as run_lib
from multipath_jax.training import setup

CHANGES = {"train_for": "8 steps", "schedule.boundaries": "", "eval_every": "4 steps",
           "log_every": "2 steps", "checkpoint_every": "3 steps"}  # fmt: skip


def recipe(data_dir, **changes):
    return tiny.tiny_config(data_dir, **CHANGES | changes)


def train(config, workdir, *hooks):
    return Trainer(config, model=tiny.Tiny(), hooks=hooks).fit(workdir)


def fail_at(where):
    """A hook that fails at step ``where``, and the list of its calls."""
    seen = []

    def hook(step, metrics):
        seen.append({"step": step} | metrics)
        if step == where:
            raise ZeroDivisionError

    return hook, seen


def test_a_users_hook_gets_the_lines_of_the_file(data_dir, workdir):
    hook, seen = fail_at(None)
    train(recipe(data_dir), workdir, hook)
    assert [line["step"] for line in seen] == [2, 4, 6, 8]  # no line for the checkpoint of step 3
    assert seen == metrics_file.read_metrics(workdir)
    assert {"train/loss", "test/error", "epoch", "images_per_second", "seconds"} <= {*seen[1]}


@pytest.mark.parametrize("hooks", [print, [None], "print", {print}])
def test_what_is_no_list_of_hooks_is_refused(hooks):
    with pytest.raises(UserError, match=r"hooks must be a list of functions, such as \[hook\]"):
        setup._checked(hooks)
    assert setup._checked(None) == ()


def test_what_a_hook_does_to_its_metrics_is_its_own_affair(data_dir, workdir):
    hook, seen = fail_at(None)
    train(recipe(data_dir), workdir, lambda _, metrics: metrics.clear(), hook)
    assert len(seen) == 4
    assert seen == metrics_file.read_metrics(workdir)


def test_a_users_hook_that_fails_loses_neither_line_nor_checkpoint(data_dir, workdir, tmp_path):
    train(recipe(data_dir), tmp_path / "whole")
    hook, _ = fail_at(6)
    with pytest.raises(ZeroDivisionError):
        train(recipe(data_dir), workdir, hook)
    assert [line["step"] for line in metrics_file.read_metrics(workdir)] == [2, 4, 6]
    assert ckpt.steps_in(workdir)[-1] == 6
    assert "ended by ZeroDivisionError" in (workdir / hooks_lib.TEXT_FILE).read_text()
    train(recipe(data_dir), workdir)
    assert_same_end(workdir, tmp_path / "whole")


def test_the_lines_up_to_a_checkpoint_are_there_when_it_is(data_dir, workdir, monkeypatch):
    """The files are opened anew for reading, so lines in a write buffer would be missing."""
    there, save = [], run_lib.Run.save

    def saving(run, error):
        logged = [line["step"] for line in metrics_file.read_metrics(workdir)]
        text = (workdir / hooks_lib.TEXT_FILE).read_text()
        there.append((run.step, logged, f"step {logged[-1]}/8" in text))
        save(run, error)

    monkeypatch.setattr(run_lib.Run, "save", saving)
    train(recipe(data_dir), workdir)
    assert {step: logged for step, logged, _ in there} == {
        3: [2], 4: [2, 4], 6: [2, 4, 6], 8: [2, 4, 6, 8],
    }  # fmt: skip
    assert all(said for *_, said in there)


def test_of_several_processes_the_first_alone_writes(data_dir, workdir, monkeypatch):
    hook, seen = fail_at(None)
    monkeypatch.setattr(processes, "is_first", lambda: False)
    user = hooks_lib.UserHook(hook)
    user(1, {"train/loss": 1.0})
    assert seen == []
    plan = tiny.setup_of(recipe(data_dir)).plan
    with hooks_lib.Log(plan, hooks_lib.Clock(plan, 1, 0), workdir, 0, float) as log:
        log.say("nobody hears it")
    assert not workdir.exists()


def test_all_are_closed_whichever_fails():
    closed = []

    class Failing(hooks_lib.LoopHook):
        def close(self):
            closed.append(self)
            raise ZeroDivisionError

    several = [Failing(), Failing(), hooks_lib.LoopHook()]
    with pytest.raises(ZeroDivisionError):
        hooks_lib.Hooks(several).close()
    assert closed == several[1::-1]
