"""Several trials of one recipe (the tables give the best of three), each an ordinary run."""

from collections.abc import Callable
from contextlib import ExitStack

import jax
from etils import epath
from ml_collections import ConfigDict

from multipath_jax import filesystem
from multipath_jax.training import checkpoints as ckpt
from multipath_jax.training.config import validate
from multipath_jax.training.loop import Result, go, never, say_what_was_found, start_run
from multipath_jax.training.parts import Parts

# Where one program for all trials was measured to be faster than one trial after another
# (docs/performance.md); elsewhere nobody has looked yet.
FASTER_SIDE_BY_SIDE = {"cpu": True}


def train_trials(
    config: ConfigDict,
    workdir: epath.PathLike,
    should_stop: Callable[[], bool] = never,
    restart: bool = False,
) -> list[Result]:
    """Trains ``config.trials`` seeds from ``config.seed`` on, in ``workdir/seed_N`` each.

    Side by side in one program or one after another, as ``config.side_by_side`` says; either way
    every trial has the config, the workdir and the result of the run of that seed alone, and goes
    on as one.

    Args:
      should_stop, restart: as for `trainer.train`.

    Returns:
      How the trials ended, in the order of their seeds; those that were not begun are left out.

    Raises:
      UserError, TrainingFailed: as `trainer.train`.
    """
    validate(config)
    folder = filesystem.path("workdir", workdir)
    trials = {folder / f"seed_{own.seed}": own for own in configs(config)}
    for path, own in trials.items():
        ckpt.check_workdir(path, own, restart)
        ckpt.check_source(path, own, restart)
    parts = Parts(config)
    for path in trials:
        if not restart:
            ckpt.check_data(path, parts.description)
    say_what_was_found(parts)
    train = _side_by_side if chosen(config) else _one_by_one
    return train(parts, trials, should_stop, restart)


def configs(config: ConfigDict) -> list[ConfigDict]:
    """The configs of the single runs."""
    own = [config.copy_and_resolve_references() for _ in range(config.trials)]
    for number, single in enumerate(own):
        single.update(seed=config.seed + number, trials=1)
    return own


def chosen(config: ConfigDict) -> bool:
    """Whether the trials of this config share one program."""
    measured = FASTER_SIDE_BY_SIDE.get(jax.default_backend(), False)
    return config.trials > 1 and {"on": True, "off": False, "auto": measured}[config.side_by_side]


def _one_by_one(
    parts: Parts, trials: dict, should_stop: Callable[[], bool], restart: bool
) -> list[Result]:
    results = []
    for path, config in trials.items():
        with start_run(parts, config, path, path.name, restart) as run:
            go([run], should_stop)
            results.append(run.result())
        if not results[-1].finished:
            break
    return results


def _side_by_side(
    parts: Parts, trials: dict, should_stop: Callable[[], bool], restart: bool
) -> list[Result]:
    with ExitStack() as stack:
        runs = [
            stack.enter_context(start_run(parts, config, path, path.name, restart))
            for path, config in trials.items()
        ]
        # A kill between two checkpoints leaves some a little behind: they catch up alone.
        furthest = max(run.step for run in runs)
        for run in (run for run in runs if run.step < furthest):
            go([run], should_stop, until=furthest)
        if all(run.step == furthest for run in runs):
            go(runs, should_stop)
        return [run.result() for run in runs]
