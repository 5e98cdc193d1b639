"""A training run in progress: its state, its files and its hooks."""

import dataclasses
import time

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from multipath_jax import checkpoints as ckpt
from multipath_jax.data.datasets import TEST
from multipath_jax.data.description import Description
from multipath_jax.errors import Failure, UserError
from multipath_jax.layers import choice
from multipath_jax.metrics_file import METRICS_FILE, SOFT, SPLITS, Metrics
from multipath_jax.parallel import processes
from multipath_jax.training.hooks import (
    Checkpointing,
    Clock,
    Hooks,
    Log,
    MetricsFile,
    Profiler,
    TensorBoard,
    UserHook,
)
from multipath_jax.training.setup import Setup
from multipath_jax.training.step import Carry
from multipath_jax.utils import progress
from multipath_jax.utils.cpu import convolutions_in_use
from multipath_jax.weights import Comparison

SECONDS_PER_CALL = 1.0  # between calls of the hooks and of ``should_stop``


class TrainingFailed(Failure):
    """The loss or a weight is not finite; the last checkpoint is kept."""


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of a run.

    Attributes:
      step: number of steps taken; less than ``total`` if the run was stopped.
      total: number of steps of the whole training.
      test: metrics of the last evaluation (``loss``, and ``error`` and ``top5_error`` in percent);
        empty if there was none.
      best_error: the lowest error of all evaluations, in percent; None if there was none.
      paths: the files and folders that were written.
      evaluated: the evaluated images: ``test``, or ``held_out`` for training images.
      stopped_early: whether ``config.patience`` has ended the run.
    """

    step: int
    total: int
    test: dict[str, float]
    best_error: float | None
    paths: list[epath.Path]
    evaluated: str = TEST
    stopped_early: bool = False

    @property
    def finished(self) -> bool:
        """Whether nothing is left to train."""
        return self.stopped_early or self.step == self.total


class Run:
    """A run in progress.

    Attributes:
      setup: the data set, model, optimizer and compiled functions.
      plan: the durations in steps.
      config: the config, with the seed of this run, and the initial weights that it began with.
      workdir: the workdir.
      checkpoints: the checkpoints of the workdir.
      carry: the current state and metrics.
      step: number of steps taken.
      test: metrics of the last evaluation; empty if there was none.
      notes: lines to print about the start: the checkpoint, or the initial weights.
      log: prints the progress.
      hooks: all hooks, including the log.
    """

    def __init__(
        self,
        setup: Setup,
        config: ConfigDict,
        workdir: epath.Path,
        checkpoints: ckpt.Checkpoints,
        name: str = "",
    ):
        """Restores the newest checkpoint; if there is none, starts with the initial weights.

        The initial weights are those of ``config.init_from``, if it is set. If either of them
        cannot be read, nothing in the workdir is changed.

        Args:
          setup: the data set, model, optimizer and compiled functions.
          config: the config of ``setup``, except for the seed.
          workdir: the workdir.
          checkpoints: the checkpoints of the workdir.
          name: prefix of printed lines, if there are several runs.
        """
        self.setup, self.plan, self.config = setup, setup.plan, config
        self.workdir, self.checkpoints = workdir, checkpoints
        with progress.at_work("reading the checkpoint or making the network"):
            self.carry, self.notes = self._start()
        ckpt.write_config(workdir, self.config)
        ckpt.write_description(workdir, setup.description)
        self.step = int(self.carry.state.step)
        self.test: dict[str, float] = {}
        self._make_hooks(name)

    def _make_hooks(self, name: str) -> None:
        """Makes the log and the hooks; only process 0 writes files."""
        files: tuple[TensorBoard | MetricsFile, ...] = ()
        before = 0.0
        if processes.is_first():
            board = TensorBoard(self.workdir, self.config.tensorboard)
            lines = MetricsFile(self.workdir, self.step)
            files, before = (board, lines), lines.seconds
            self.notes = [*lines.notes, *self.notes]
        self.clock = Clock(self.plan, self.config.batch_size, self.step, before)
        self.log = Log(self.plan, self.clock, self.workdir, self.step, self._loss, name)
        best, evaluated = self.checkpoints.best_error, self.setup.dataset.evaluated
        self.hooks = Hooks(
            (
                self.clock,
                Profiler(self.workdir, self.plan.profile, self.log.say),
                *files,
                self.log,
                # After the metrics file, so that a checkpoint never exists without its lines, and
                # before the user's hooks, which may fail.
                Checkpointing(self.plan, evaluated, best, self.save, self._counts),
                *map(UserHook, self.setup.hooks),
            )
        )

    def _start(self) -> tuple[Carry, list[str]]:
        """The first carry of this process, and lines to print about it."""
        carry, lines = self.checkpoints.restore_newest(self.setup.abstract_carry)
        if carry is not None:
            self.config, more = ckpt.with_stored_start(self.workdir, self.config)
            return carry, [*lines, *more]
        carry, more = first_carry(self.setup, self.config)
        return carry, [*lines, *more]

    def compile(self) -> None:
        """Compiles the training step, unless it is compiled."""
        if said := convolutions_in_use():
            self.log.say(said)
        if cost := self.setup.runner.compile(self.carry):
            self.log.say(f"compiled the training step: {cost}")

    def advance(self, pace: "Pace", end: int) -> None:
        """Runs a group of steps, at most to ``end`` or the plan's next stop.

        Args:
          pace: the largest number of steps.
          end: the last step.

        Raises:
          TrainingFailed: the loss of a step is not finite.
        """
        count = pace.steps(min(end, self.plan.next_stop(self.step)) - self.step)
        self.hooks.before_steps(self.step)
        begun = time.monotonic()
        with (
            jax.profiler.StepTraceAnnotation("train", step_num=self.step),  # seen in a profile
            progress.at_work(f"step {self.step + 1}/{self.plan.total}"),  # of large networks
        ):
            self.carry = self.setup.runner(self.carry, self.step, count)
            fault = jax.device_get(self.carry.metrics.fault).compute()  # waits for the steps
        if fault:
            raise TrainingFailed(self._failure(f"the loss of step {fault}"))
        self.step += count
        seconds = time.monotonic() - begun
        pace.measured(count, seconds)
        self.hooks.after_steps(self.step, count, seconds)

    def metrics(self) -> Metrics:
        """The metrics that are due at this step; empty if there are none."""
        values = {}
        if self.plan.due(self.plan.log_every, self.step):
            values |= self._training_values()
            self.carry = self.carry._replace(metrics=self.setup.no_metrics())
        if self.plan.due(self.plan.eval_every, self.step):
            self.test = self._evaluate()
            split = self.setup.dataset.evaluated
            values |= {f"{split}/{name}": value for name, value in self.test.items()}
            values |= {} if self._counts() else {SOFT: 1.0}
        return values | self.clock.measured(self.step) if values else {}

    def _training_values(self) -> Metrics:
        """Means of the training metrics since the last log, and the learning rate."""
        found = jax.device_get(self.carry.metrics).compute()
        rate = self.setup.learning_rate
        return {
            "train/loss": float(found["loss"]),
            "train/error": 100 * float(found["error"]),
            **({} if rate is None else {"learning_rate": float(rate(self.step - 1))}),
            **{f"routing/{name}": float(value) for name, value in found["routing"].items()},
        }

    def _loss(self) -> float:
        """The mean training loss since the last log."""
        return float(jax.device_get(self.carry.metrics).compute()["loss"])

    def _evaluate(self) -> dict[str, float]:
        """Evaluates; at the end of training also on ten crops or mirror images, if configured."""
        ended = self.step == self.plan.total
        evaluate = self.setup.evaluate_fully if ended else self.setup.evaluate
        return evaluate(self.carry.state.weights)

    def _counts(self) -> bool:
        """Whether the error of this step counts: not while discrete routers are still soft."""
        return not choice.is_soft(self.carry.state.weights)

    def evaluate(self) -> None:
        """Evaluates, unless this process has evaluated before."""
        self.test = self.test or self._evaluate()

    def stop(self) -> None:
        """Saves a checkpoint to resume from."""
        self.save(None)
        self.log.say(f"stopped at step {self.step}; rerun the command to resume")

    def is_over(self) -> bool:
        """Whether nothing is left to train."""
        return self.step == self.plan.total or self.is_exhausted()

    def is_exhausted(self) -> bool:
        """Whether the error has been above its lowest for ``config.patience``.

        This depends only on the step and the best checkpoint, so it is the same after resuming.
        """
        plan, step = self.plan, self.step
        if not plan.patience or step == plan.total or not plan.due(plan.eval_every, step):
            return False
        best = self.checkpoints.best_of(self.checkpoints.steps)
        return bool(processes.first_decides(best is not None and step - best >= plan.patience))

    def stop_early(self) -> None:
        """Saves a checkpoint at the end by early stopping, and prints the best one."""
        split = self.setup.dataset.evaluated
        self.save(self.test["error"])
        best, lowest = self.checkpoints.best, self.checkpoints.best_error
        self.log.say(
            f"stopped early at step {self.step}: the {SPLITS[split]} error was lowest, "
            f"{lowest:.2f} %, at step {best} (patience={self.config.patience})"
        )

    def has_ended(self) -> None:
        """Prints that the run has ended, and evaluates it."""
        self.log.say(f"this run has ended at step {self.step}; nothing is left to train")
        self.test = self._evaluate()

    def save(self, error: float | None) -> None:
        """Starts to write a checkpoint.

        Args:
          error: the error of this step in percent; None if it is unknown.

        Raises:
          TrainingFailed: a weight is not finite.
        """
        if not self.setup.is_finite(self.carry.state):
            raise TrainingFailed(self._failure(f"a weight after step {self.step}"))
        self.checkpoints.save(self.step, self.carry, error)

    def _failure(self, what: str) -> str:
        last = self.checkpoints.latest
        kept = "no checkpoint was written before" if last is None else f"step {last} is kept"
        return (
            f"{what} is not finite; {kept} (a lower schedule.learning_rate may help, in another "
            "workdir)"
        )

    def result(self) -> Result:
        """Waits until all checkpoints are written, and returns the result."""
        with progress.at_work("writing the last checkpoint"):
            self.checkpoints.wait()
        paths = [self.workdir / ckpt.FOLDER, self.workdir / METRICS_FILE]
        best, split = self.checkpoints.best_error, self.setup.dataset.evaluated
        early = self.is_exhausted()
        return Result(self.step, self.plan.total, self.test, best, paths, split, early)


def first_carry(setup: Setup, config: ConfigDict) -> tuple[Carry, list[str]]:
    """The carry of step 0, with the weights of ``config.init_from``, if set; and lines to print."""
    carry, notes = setup.fresh_carry(config.seed), [*setup.notes]
    if not config.init_from:
        return carry, notes
    fresh = carry.state.variables
    variables, found = ckpt.initialize_from(config, fresh, model=setup.model)
    variables = choice.with_counters_of(fresh, variables)
    carry = carry._replace(state=carry.state.with_variables(variables))
    notes += [f"starting from the weights of {config.init_from}", *found.lines]
    notes += found.other_classes(setup.description.class_names)
    return carry, [*notes, *_other_normalization(found, setup.description)]


def _other_normalization(found: Comparison, data: Description) -> list[str]:
    """A line to print if the weights were trained with another normalization."""
    there, here = (found.mean, found.std), (data.mean, data.std)
    if not found.mean or all(
        np.shape(a) == np.shape(b) and np.allclose(a, b, atol=1e-3)  # a quarter of a grey level
        for a, b in zip(there, here, strict=True)
    ):
        return []
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in there)
    return [
        f"the weights were trained on images normalized by mean {mean} and deviation {std}, not "
        "by this run's; dataset.mean and dataset.std set them"
    ]


class Pace:
    """The number of steps per group, which does not change any result."""

    def __init__(self, steps_per_call: int | None = None):
        """Sets the pace.

        Args:
          steps_per_call: the largest number of steps; None: it is adapted to `SECONDS_PER_CALL`.

        Raises:
          UserError: it is less than one.
        """
        if steps_per_call is not None and steps_per_call < 1:
            raise UserError(f"steps_per_call={steps_per_call} must be at least 1")
        self._fixed = steps_per_call
        self._steps = steps_per_call or 1

    def steps(self, limit: int) -> int:
        """The number of steps of the next group, at most ``limit``."""
        return processes.first_decides(min(limit, self._steps))

    def measured(self, steps: int, seconds: float) -> None:
        """Adapts the pace to the time of a group of steps."""
        if self._fixed is None:
            self._steps = max(1, int(steps * SECONDS_PER_CALL / seconds))
