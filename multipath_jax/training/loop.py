"""The training loop: groups of compiled steps, each followed by the hooks."""

import contextlib
from collections.abc import Callable, Iterator

from etils import epath
from ml_collections import ConfigDict

from multipath_jax import checkpoints as ckpt
from multipath_jax.metrics_file import DROPPED_FILE, METRICS_FILE
from multipath_jax.parallel import processes
from multipath_jax.training.hooks import CURVES_FILE, TEXT_FILE
from multipath_jax.training.run import Pace, Run
from multipath_jax.training.setup import Setup
from multipath_jax.utils.spawning import check_guard

# Names of the files of a run, except traces and TensorBoard files, whose names are always new.
WRITTEN = (
    ckpt.FOLDER,
    ckpt.DAMAGED,
    ckpt.CONFIG_FILE,
    ckpt.DATASET_FILE,
    METRICS_FILE,
    DROPPED_FILE,
    TEXT_FILE,
    CURVES_FILE,
)


def never() -> bool:
    """A ``should_stop`` function that never stops."""
    return False


def say_what_was_found(setup: Setup) -> None:
    """Prints the notes of the data set."""
    if processes.is_first():
        for line in setup.dataset.notes:
            print(line, flush=True)


@contextlib.contextmanager
def start_run(
    setup: Setup, config: ConfigDict, workdir: epath.Path, name: str = "", restart: bool = False
) -> Iterator[Run]:
    """Context manager: a run in a workdir, from its newest checkpoint if there is one.

    On exit, all files are complete and closed.

    Args:
      setup: the data set, model, optimizer and compiled functions.
      config: the config of ``setup``, except for the seed.
      workdir: the workdir.
      name: prefix of printed lines, if there are several runs.
      restart: whether to move the files of an earlier run aside and start from scratch.

    Raises:
      UserError: the workdir has a run with other data or is in use, ``config.init_from`` or a
        checkpoint cannot be read, or a script without `spawning.GUARD` runs again in a process.
    """
    check_guard()
    fresh = setup.abstract_carry.state.variables
    ckpt.check_source(workdir, config, restart, fresh, setup.model)
    with ckpt.claimed(workdir):
        said = ckpt.move_aside(workdir, WRITTEN) if restart else []
        said += ckpt.check_data(workdir, setup.description)
        with contextlib.closing(ckpt.Checkpoints(workdir)) as checkpoints:
            run = Run(setup, config, workdir, checkpoints, name)
            with run.log, contextlib.closing(run.hooks):
                for line in (*said, *run.notes):
                    run.log.say(line)
                yield run


def run_steps(
    run: Run,
    should_stop: Callable[[], bool],
    until: int | None = None,
    pace: Pace | None = None,
) -> None:
    """Trains to the end, to a given step, or until a stop is requested.

    Args:
      run: the run.
      should_stop: called after every group of steps; if it returns True, a checkpoint is saved and
        training stops.
      until: the last step; None: the end of training. No checkpoint is saved there.
      pace: the number of steps per group; None: it is adapted to about a second.

    Raises:
      TrainingFailed: the loss or a weight is not finite.
    """
    end = run.plan.total if until is None else until
    if run.is_over():
        run.has_ended()
        return
    if run.step >= end:
        return
    run.compile()
    pace = pace or Pace()
    with contextlib.closing(run.setup.source):
        while run.step < end:
            run.advance(pace, end)
            run.hooks(run.step, run.metrics())
            if run.is_exhausted():
                run.stop_early()
                return
            if run.step < end and processes.any_process(should_stop()):
                run.stop()
                return
