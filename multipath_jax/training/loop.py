"""The loop: calls the compiled steps, then the hooks, until it is to stop."""

import contextlib
from collections.abc import Callable, Iterator

from etils import epath
from ml_collections import ConfigDict

from multipath_jax import checkpoints as ckpt
from multipath_jax.parallel import processes
from multipath_jax.training.hooks import CURVES_FILE, DROPPED_FILE, METRICS_FILE, TEXT_FILE
from multipath_jax.training.run import Pace, Run
from multipath_jax.training.setup import Setup

# What a run writes into its workdir, but for the traces and TensorBoard's files, which have names
# of their own each time.
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
    """``should_stop`` of a run that goes to its end."""
    return False


def say_what_was_found(setup: Setup) -> None:
    """Prints the data set's notes; once, however many runs share it."""
    if processes.is_first():
        for line in setup.dataset.notes:
            print(line, flush=True)


@contextlib.contextmanager
def start_run(
    setup: Setup, config: ConfigDict, workdir: epath.Path, name: str = "", restart: bool = False
) -> Iterator[Run]:
    """A run of a workdir, from its newest checkpoint if it has one; in the end all is written.

    Args:
      config: that of ``setup``, but for the seed.
      name: in front of what it prints, where there are several.
      restart: as for `train`.
    """
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
    """Trains to the end, or to the step ``until``, or until asked to stop.

    A checkpoint is the last thing that it does, unless the run is to go on.

    Args:
      pace: how many steps a call takes, after which the hooks are called and ``should_stop`` is
        asked; None: about a second's worth.
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
