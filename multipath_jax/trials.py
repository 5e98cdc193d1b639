"""Several trials of one recipe with consecutive seeds, each an ordinary run."""

from collections.abc import Callable

from etils import epath
from ml_collections import ConfigDict

from multipath_jax import checkpoints as ckpt
from multipath_jax.config.keys import validate
from multipath_jax.parallel import processes
from multipath_jax.trainer import ended
from multipath_jax.training.loop import never, run_steps, say_what_was_found, start_run
from multipath_jax.training.run import Pace, Result, TrainingFailed
from multipath_jax.training.setup import Setup
from multipath_jax.utils import filesystem, progress


def train_trials(
    config: ConfigDict,
    workdir: epath.PathLike,
    should_stop: Callable[[], bool] = never,
    restart: bool = False,
    steps_per_call: int | None = None,
) -> list[Result]:
    """Trains ``config.trials`` seeds from ``config.seed`` on, each in ``workdir/seed_N``.

    The trials run one after another with the same compiled program. Each has the config, the
    workdir and the result of a separate run with its seed, and can be resumed as such.

    Args:
      config: the config.
      workdir: parent folder of the trials' workdirs.
      should_stop, restart, steps_per_call: as for `Trainer.fit`.

    Returns:
      The results of the trials that were started, in the order of their seeds.

    Raises:
      UserError: as `trainer.train`.
      TrainingFailed: the loss or a weight of a trial is not finite; raised after the other trials.
    """
    validate(config)
    folder = filesystem.path("workdir", workdir)
    trials = {folder / f"seed_{own.seed}": own for own in configs(config)}
    for path, own in trials.items():
        ckpt.check_workdir(path, own, restart)
        ckpt.check_source(path, own, restart)
    setup = Setup(config)
    for path in trials:
        if not restart:
            ckpt.check_data(path, setup.description)
    say_what_was_found(setup)
    results, failures = [], []
    for path, own in trials.items():
        try:
            with start_run(setup, own, path, path.name, restart) as run:
                run_steps(run, should_stop, pace=Pace(steps_per_call))
                results.append(ended(run))
        except TrainingFailed as error:
            failures.append(TrainingFailed(f"{path.name}: {error}"))
            if processes.is_first():
                progress.say(str(failures[-1]))
            continue
        if not results[-1].finished:
            break
    if failures:
        raise failures[0]
    return results


def configs(config: ConfigDict) -> list[ConfigDict]:
    """The configs of the trials."""
    own = [config.copy_and_resolve_references() for _ in range(config.trials)]
    for number, single in enumerate(own):
        single.update(seed=config.seed + number, trials=1)
    return own
