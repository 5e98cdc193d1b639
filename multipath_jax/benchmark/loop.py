"""Whole runs: the training loop against the bare step, and the time to the first step."""

import contextlib
import io
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from multipath_jax.benchmark import random_images
from multipath_jax.benchmark.rows import Part, Row, at_least, at_most
from multipath_jax.benchmark.settings import Problem, Settings
from multipath_jax.benchmark.steps import BATCHES, CompiledStep
from multipath_jax.benchmark.timing import Clock, Contestant, Times, spread
from multipath_jax.config.keys import default_config
from multipath_jax.parallel.devices import split_batch
from multipath_jax.training.loop import Run, never, run_steps, start_run
from multipath_jax.training.setup import Setup
from multipath_jax.training.step import Batch

NETWORK = "BaseCNN-2-CC"
CIFAR_EXAMPLES = 50_000  # per epoch
WARM_UP = 3  # calls that are not counted, in which the loop adapts the number of steps per call

# The sources of batches, with the config keys that select them.
LOADERS = {"resident": {}, "streamed": {"dataset.streamed": True}}


def run_config(problem: Problem, data_dir: str, **changes) -> dict:
    """Changes to the default config that train a problem's network on random images.

    Evaluation and checkpoints are disabled; the run logs every epoch.
    """
    never = "1000000000 steps"
    return {
        "model.name": problem.network,
        "dtype": problem.dtype,
        "dataset.name": "random_images",
        "dataset.data_dir": data_dir,
        "dataset.shift": 4,
        "dataset.flip": True,
        "batch_size": problem.batch,
        "train_for": never,
        "eval_every": never,
        "checkpoint_every": never,
        "tensorboard": "off",
        **changes,
    }


class TurnTaking:
    """A ``should_stop`` function that runs the bare step, so that loop and step alternate.

    The loop calls it about once a second. Everything between two calls is the time of the loop:
    dispatches, waiting, logs.
    """

    def __init__(
        self,
        step: Callable[[], int],
        bare: Contestant,
        rounds: int,
        clock: Clock = time.perf_counter,
    ):
        """Sets up the comparison.

        Args:
          step: returns the number of steps that the run has taken.
          bare: the bare step as a contestant.
          rounds: number of rounds after the warm-up.
          clock: returns the time in seconds.
        """
        self._where, self._bare, self._clock = step, bare, clock
        self._left = WARM_UP + rounds
        self._begun = self._step = None
        self.seconds = {"loop": [], "bare": []}

    def __call__(self) -> bool:
        """Whether all rounds are done."""
        now, step = self._clock(), self._where()
        if self._begun is not None:
            self.seconds["loop"].append((now - self._begun) / (step - self._step))
            self.seconds["bare"].append(self._bare(step - self._step) / (step - self._step))
        self._left -= 1
        self._begun, self._step = self._clock(), step
        return self._left < 0

    def times(self) -> Times:
        """The rounds after the warm-up."""
        return Times({name: values[WARM_UP:] for name, values in self.seconds.items()})


def _loop(settings: Settings, loader: str) -> Iterator[Row]:
    problem = settings.problem(NETWORK)
    with tempfile.TemporaryDirectory() as folder:
        random_images.prepare(folder, count=40 * problem.batch)
        config = default_config()
        config.update_from_flattened_dict(run_config(problem, folder, **LOADERS[loader]))
        times, lost = _take_turns(config, epath.Path(folder) / "run", settings)
    rates = {name: problem.batch / (times.milliseconds(name) / 1e3) for name in times.seconds}
    yield Row(
        f"{problem.network} batch {problem.batch}, data {loader}",
        "images/s of the loop / of the bare step",
        times.ratio("bare", "loop"),
        at_least(0.97),
        {f"{name} images/s": rate for name, rate in rates.items()},
    )
    epoch = CIFAR_EXAMPLES // problem.batch * times.milliseconds("loop")
    yield Row(
        f"{problem.network} batch {problem.batch}, a checkpoint an epoch",
        "time lost to checkpoints / time of the steps",
        spread(1e3 * np.asarray(lost) / epoch),
        at_most(0.01),
        {"a checkpoint ms": 1e3 * float(np.median(lost)), "epoch s": epoch / 1e3},
    )


# The images per second of the loop over those of the bare compiled step.
LOOP = Part(lambda _: tuple(LOADERS), _loop)


def _take_turns(
    config: ConfigDict, workdir: epath.Path, settings: Settings
) -> tuple[Times, list[float]]:
    """Times loop and bare step in turns, and the seconds lost to each of some checkpoints."""
    quiet = contextlib.redirect_stdout(io.StringIO())
    with quiet, start_run(Setup(config), config, workdir) as run:
        rounds = 5 if settings.quick else settings.rounds
        turns = TurnTaking(lambda: run.step, _bare_step(run.setup), rounds)
        run_steps(run, turns)
        times = turns.times()
        seconds = 2.0 if settings.quick else 10.0  # longer than writing a checkpoint
        steps = math.ceil(1e3 * seconds / times.milliseconds("loop"))
        lost = []
        for _ in range(3 if settings.quick else 9):
            settings.check_time()
            lost.append(_lost_to_a_checkpoint(run, steps))
    return times, lost


def _lost_to_a_checkpoint(run: Run, steps: int, clock: Clock = time.perf_counter) -> float:
    """The difference in seconds between ``steps`` steps with and without a checkpoint."""
    taken = []
    for saved in (False, True):
        begun = clock()
        if saved:
            run.save(None)
        run_steps(run, never, until=run.step + steps)
        taken.append(clock() - begun)
    run.checkpoints.wait()
    return taken[1] - taken[0]


def _bare_step(setup: Setup) -> CompiledStep:
    """The step of a run without its loop, including augmentation, on fixed batches."""
    count = BATCHES * setup.config.batch_size
    batches = jax.tree.map(
        lambda array: jax.device_put(
            array[:count].reshape(BATCHES, -1, *array.shape[1:]), split_batch(setup.mesh, axis=1)
        ),
        Batch(setup.dataset.train.images, setup.dataset.train.labels),
    )
    dispatch = "loop" if setup.runner.loop else 1
    return CompiledStep(setup.train_step, setup.fresh_carry(0).state, batches, dispatch)


def _first_step(settings: Settings, network: str) -> Iterator[Row]:
    problem = settings.problem(network)
    with tempfile.TemporaryDirectory() as folder:
        random_images.prepare(folder, count=4 * problem.batch)

        def seconds(number: int, name: str) -> float:
            cache = os.path.join(folder, f"cache_{number}")  # empty for the first run of a round
            config = run_config(problem, folder, compilation_cache=cache)
            workdir = os.path.join(folder, f"{name}_{number}")
            spec = {"kind": "run", "config": config, "workdir": workdir}
            with settings.worker(spec) as worker:
                return worker.ready["startup"]

        rounds = range(1 if settings.quick else 5)
        pairs = [(seconds(i, "without"), seconds(i, "with")) for i in rounds]
    times = Times(dict(zip(("without", "with"), zip(*pairs, strict=True), strict=True)))
    yield Row(
        f"{problem.network} batch {problem.batch}, fresh process",
        "without / with the compilation cache",
        times.ratio("without", "with"),
        figures={f"{name} s": times.milliseconds(name) / 1e3 for name in times.seconds},
    )


# Time from the start of a process to the end of its first step, with and without a cache.
FIRST_STEP = Part(lambda _: (NETWORK,), _first_step)
