"""The loop: calls the step, and hangs logs, evaluation and checkpoints around it."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator

import jax
from etils import epath
from ml_collections import ConfigDict

from multipath_jax import checkpoints as ckpt
from multipath_jax.data.datasets import TEST
from multipath_jax.errors import Failure
from multipath_jax.parallel import processes
from multipath_jax.training.hooks import CURVES_FILE, DROPPED_FILE, METRICS_FILE, TEXT_FILE, Log
from multipath_jax.training.profiler import Profiler
from multipath_jax.training.setup import Setup
from multipath_jax.training.step import Carry
from multipath_jax.utils import progress
from multipath_jax.utils.cpu import convolutions_in_use

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
SECONDS_A_CALL = 1.0  # how often a run looks up: at the clock, the progress bar, a wish to stop


class TrainingFailed(Failure):
    """The loss or the weights stopped being finite; the last good checkpoint is kept."""


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
      step: the steps taken; fewer than ``total`` if the run was asked to stop.
      test: the last measurements on the test split (``loss``, ``error`` and ``top5_error`` in %);
        empty if it was stopped before the first.
      best_error: the lowest test error of the run, in %.
      paths: what was written.
      evaluated: ``test`` or, if the errors are of training images held out, ``held_out``.
    """

    step: int
    total: int
    test: dict[str, float]
    best_error: float | None
    paths: list[epath.Path]
    evaluated: str = TEST

    @property
    def finished(self) -> bool:
        """Whether nothing is left to train."""
        return self.step == self.total


def never() -> bool:
    """The wish of a run that nobody stops."""
    return False


def say_what_was_found(setup: Setup) -> None:
    """Prints the data set's notes; once, however many runs share it."""
    if processes.is_first():
        for line in setup.dataset.notes:
            print(line, flush=True)


@contextlib.contextmanager
def start_run(
    setup: Setup, config: ConfigDict, workdir: epath.Path, name: str = "", restart: bool = False
) -> Iterator["Run"]:
    """A run of a workdir, from its newest checkpoint if it has one; in the end all is written.

    Args:
      config: that of ``setup``, but for the seed.
      name: in front of what it prints, where there are several.
      restart: as for `train`.
    """
    ckpt.check_source(workdir, config, restart, setup.abstract_carry.state.variables)
    with ckpt.claimed(workdir):
        said = ckpt.move_aside(workdir, WRITTEN) if restart else []
        said += ckpt.check_data(workdir, setup.description)
        with contextlib.closing(ckpt.Checkpoints(workdir)) as checkpoints:
            run = Run(setup, config, workdir, checkpoints, name)
            with run.log:
                for line in (*said, *run.origin):
                    run.log.say(line)
                yield run


def run_steps(run: "Run", should_stop: Callable[[], bool], until: int | None = None) -> None:
    """Trains to the end, or to the step ``until``, or until asked to stop.

    A checkpoint is the last thing that it does, unless the run is to go on.
    """
    setup = run.setup
    end = setup.plan.total if until is None else until
    if run.step == setup.plan.total:
        run.has_ended()
    if run.step >= end:
        return
    if said := convolutions_in_use():
        run.log.say(said)
    runner, pace = setup.runner, Pace()
    if cost := runner.compile(run.carry):
        run.log.say(f"compiled the training step: {cost}")
    with (
        contextlib.closing(setup.source),
        Profiler(run.workdir, setup.plan.profile, run.log.say) as profiler,
    ):
        profiler.at(run.step)
        while run.step < end:
            _advance(run, pace, end)
            profiler.at(run.step)
            run.hooks()
            if run.step < end and processes.any_wishes(should_stop()):
                run.stop()
                return


def _advance(run: "Run", pace: "Pace", end: int) -> None:
    """About a second's worth of steps, no further than the next epoch or hook."""
    begun = time.monotonic()
    setup, step = run.setup, run.step
    count = pace.steps(min(end, setup.plan.next_stop(step)) - step)
    with (
        jax.profiler.StepTraceAnnotation("train", step_num=step),  # seen in a profile
        progress.at_work(f"step {step + 1}/{setup.plan.total}"),  # of large networks on a CPU
    ):
        run.take(setup.runner(run.carry, step, count), count)
    seconds = time.monotonic() - begun
    pace.measured(count, seconds)
    run.log.advance(run.step, count, seconds, run.loss)


class Run:
    """A run in progress: where it stands, and what it does at the steps that its plan names."""

    def __init__(
        self,
        setup: Setup,
        config: ConfigDict,
        workdir: epath.Path,
        checkpoints: ckpt.Checkpoints,
        name: str = "",
    ):
        """Resumes, else starts from ``config.init_from``, else afresh.

        Until it is known how, nothing in the workdir is changed.
        """
        self.setup, self.plan, self.config = setup, setup.plan, config
        self.workdir, self.checkpoints = workdir, checkpoints
        with progress.at_work("reading the checkpoint or making the network"):
            self.carry, self.origin = self._start()
        ckpt.write_config(workdir, config)
        ckpt.write_description(workdir, setup.description)
        self.step = int(self.carry.state.step)
        self.test: dict[str, float] = {}
        best = checkpoints.best_error
        self._best_error = math.inf if best is None else best  # of the checkpoints
        self.log = Log(config, self.plan, workdir, self.step, name)

    def _start(self) -> tuple[Carry, list[str]]:
        """The carry to go on from, and what to say about where it comes from."""
        carry, lines = self.checkpoints.restore_newest(self.setup.abstract_carry)
        if carry is not None:
            return carry, lines
        carry = self.setup.fresh_carry(self.config.seed)
        if self.config.init_from:
            variables, found = ckpt.initialize_from(self.config, carry.state.variables)
            lines += [f"starting from the weights of {self.config.init_from}", *found.lines]
            carry = carry._replace(state=carry.state.with_variables(variables))
        return carry, lines

    def take(self, carry: Carry, count: int) -> None:
        """Goes on from what ``count`` more steps gave; waits for them.

        Raises:
          TrainingFailed: the loss of one of them is not finite.
        """
        self.carry = carry
        fault = jax.device_get(carry.metrics.fault).compute()
        if fault:
            raise TrainingFailed(self._failure(f"the loss of step {fault}"))
        self.step += count

    def loss(self) -> float:
        """The mean loss since the last log."""
        return float(jax.device_get(self.carry.metrics).compute()["loss"])

    def stop(self) -> None:
        """Saves, to go on from there another time."""
        self.save(None)
        self.log.say(f"stopped at step {self.step}; the same command goes on from there")

    def has_ended(self) -> None:
        """Says so, and measures the end once more."""
        self.log.say(f"this run has ended at step {self.step}; nothing is left to train")
        self.test = self._evaluate()

    def _evaluate(self) -> dict[str, float]:
        """The measurements on the test split, more of them at the end of training."""
        ended = self.step == self.plan.total
        evaluate = self.setup.evaluate_fully if ended else self.setup.evaluate
        return evaluate(self.carry.state.weights)

    def hooks(self) -> None:
        """Evaluates, logs and saves, where the plan says so."""
        due = {
            name: self.plan.due(every, self.step)
            for name, every in (
                ("log", self.plan.log_every),
                ("evaluation", self.plan.eval_every),
                ("checkpoint", self.plan.checkpoint_every),
            )
        }
        values, error = {}, None
        if due["log"]:
            values = self._training_values()
            self.carry = self.carry._replace(metrics=self.setup.no_metrics())
        if due["evaluation"]:
            self.test = self._evaluate()
            error = self.test["error"]
            split = self.setup.dataset.evaluated
            values |= {f"{split}/{name}": value for name, value in self.test.items()}
        if values:
            # Before the checkpoint: the lines up to it must be there when it is.
            self.log.write(self.step, values)
            for hook in self.setup.hooks:
                hook(self.step, values)
        is_best = error is not None and error <= self._best_error
        if due["checkpoint"] or is_best:
            self.save(error)

    def _training_values(self) -> dict[str, float]:
        """What happened since the last log, by the names of ``metrics.jsonl``."""
        found = jax.device_get(self.carry.metrics).compute()
        return {
            "train/loss": float(found["loss"]),
            "train/error": 100 * float(found["error"]),
            **self._learning_rate(),
            **{f"routing/{name}": float(value) for name, value in found["routing"].items()},
        }

    def _learning_rate(self) -> dict[str, float]:
        rate = self.setup.learning_rate
        return {} if rate is None else {"learning_rate": float(rate(self.step - 1))}

    def measure(self) -> None:
        """Evaluates, unless that was done in this run's time."""
        self.test = self.test or self._evaluate()

    def save(self, error: float | None) -> None:
        """Begins to write a checkpoint; ``error``: on the test split in %, where it is known.

        Raises:
          TrainingFailed: a weight is not finite.
        """
        if not self.setup.is_finite(self.carry.state):
            raise TrainingFailed(self._failure(f"a weight after step {self.step}"))
        self.checkpoints.save(self.step, self.carry, error)
        self._best_error = min(self._best_error, math.inf if error is None else error)

    def _failure(self, what: str) -> str:
        last = self.checkpoints.latest
        kept = "no checkpoint was written before" if last is None else f"step {last} is kept"
        return (
            f"{what} is not finite; {kept} (a lower schedule.learning_rate may help, in another "
            "workdir)"
        )

    def result(self) -> Result:
        """How it ended, with all that belongs to it written."""
        with progress.at_work("writing the last checkpoint"):
            self.checkpoints.wait()
        paths = [self.workdir / ckpt.FOLDER, self.workdir / METRICS_FILE]
        best, split = self.checkpoints.best_error, self.setup.dataset.evaluated
        return Result(self.step, self.plan.total, self.test, best, paths, split)


class Pace:
    """How many steps fit into a second. Where a call begins and ends changes no result."""

    def __init__(self):
        self._steps = 1

    def steps(self, limit: int) -> int:
        """Of the coming call, at most ``limit``."""
        return processes.first_decides(min(limit, self._steps))

    def measured(self, steps: int, seconds: float) -> None:
        self._steps = max(1, int(steps * SECONDS_A_CALL / seconds))
