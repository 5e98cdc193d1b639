"""Trials: several seeds of one recipe give the same results as separate runs."""

import jax
import numpy as np
import pytest
import tiny
from etils import epath
from workdirs import assert_same_end, final

from multipath_jax import checkpoints as ckpt
from multipath_jax import trials
from multipath_jax.config import keys as config_lib
from multipath_jax.errors import UserError
from multipath_jax.trainer import train
from multipath_jax.training.run import Result, TrainingFailed
from multipath_jax.training.setup import Setup

pytestmark = pytest.mark.usefixtures("tiny_by_name")
SEEDS = (5, 6)


def recipe(data_dir, **changes):
    own = {"train_for": "2 epochs", "schedule.boundaries": "1 epoch", "seed": 5}
    return tiny.tiny_config(data_dir, **tiny.NAMED | own | changes)


@pytest.fixture(scope="module")
def alone(tiny_by_name, data_dir, tmp_path_factory):
    """The workdir and result of a separate run for each seed, by seed."""
    folder = epath.Path(tmp_path_factory.mktemp("alone"))
    return {
        seed: (folder / str(seed), tiny.train(recipe(data_dir, seed=seed), folder / str(seed)))
        for seed in SEEDS
    }


def assert_as_alone(alone, workdir, results):
    for (seed, (other, expected)), result in zip(alone.items(), results, strict=True):
        own = workdir / f"seed_{seed}"
        assert config_lib.read_config(own / ckpt.CONFIG_FILE).trials == 1
        assert config_lib.read_config(own / ckpt.CONFIG_FILE).seed == seed
        assert_same_end(own, other)
        assert result.test == expected.test
        assert result.finished


def test_the_two_seeds_differ(alone, data_dir):
    setup = tiny.setup_of(recipe(data_dir))
    one, two = (final(alone[s][0], setup).state.params["conv"] for s in SEEDS)
    assert np.abs(one["kernel"] - two["kernel"]).max() > 0.1


def test_they_are_the_runs_alone(alone, workdir, data_dir):
    results = trials.train_trials(recipe(data_dir, trials=2), workdir)
    assert_as_alone(alone, workdir, results)


@pytest.mark.slow
def test_a_request_to_stop_leaves_the_rest_for_the_next_call(alone, workdir, data_dir):
    config = recipe(data_dir, trials=2)
    results = trials.train_trials(config, workdir, should_stop=lambda: True)
    assert [result.finished for result in results] == [False]
    assert not (workdir / "seed_6").exists()
    results = trials.train_trials(config, workdir)
    assert_as_alone(alone, workdir, results)


def test_a_trial_that_fails_keeps_no_other_from_being_trained(
    workdir, data_dir, monkeypatch, capsys
):
    def run_steps(run, *_, **__):
        if run.config.seed == 5:
            raise TrainingFailed("the loss of step 1 is not finite")

    monkeypatch.setattr(trials, "run_steps", run_steps)
    monkeypatch.setattr(trials, "ended", lambda run: Result(1, 1, {}, None, []))
    with pytest.raises(TrainingFailed, match=r"^seed_5: the loss of step 1 is not finite$"):
        trials.train_trials(recipe(data_dir, trials=2), workdir)
    assert (workdir / "seed_6").exists()
    assert "seed_5: the loss of step 1 is not finite\n" in capsys.readouterr().out


def test_another_recipe_in_one_trial_is_refused_before_any_begins(workdir, data_dir):
    train(recipe(data_dir, seed=6, batch_size=64), workdir / "seed_6")
    with pytest.raises(UserError, match="batch_size: 64 -> 128"):
        trials.train_trials(recipe(data_dir, trials=2), workdir)
    assert not (workdir / "seed_5").exists()


def test_a_trial_compiles_nothing_that_the_one_before_it_compiled(workdir, data_dir, monkeypatch):
    """Counts all compilations: of the training step, and of every operation outside of it."""
    compiled, begun, start = [], [], trials.start_run
    events = jax.monitoring

    def heard(event, _, **__):
        compiled.append(event)

    def starting(*arguments):
        begun.append(compiled.count("/jax/core/compile/backend_compile_duration"))
        return start(*arguments)

    monkeypatch.setattr(trials, "start_run", starting)
    events.register_event_duration_secs_listener(heard)
    try:
        trials.train_trials(recipe(data_dir, trials=3), workdir)
    finally:
        events.unregister_event_duration_listener(heard)
    first, second, third = begun
    assert second > first
    assert third == second == compiled.count("/jax/core/compile/backend_compile_duration")


def test_the_program_does_not_depend_on_the_seed(data_dir):
    """Otherwise processes with other seeds could not share the compilation cache."""

    def program(seed):
        setup = Setup(recipe(data_dir, seed=seed))
        step = setup.runner._function
        return step.lower(setup.abstract_carry, setup.source.like()).as_text()

    assert program(5) == program(6)
