"""A run in progress: its state and its files, and the hooks that its steps call."""

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
from multipath_jax.parallel import processes
from multipath_jax.training.hooks import (
    METRICS_FILE,
    SPLITS,
    Checkpointing,
    Clock,
    Hooks,
    Log,
    Metrics,
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

SECONDS_PER_CALL = 1.0  # how often the hooks are called, and it is asked whether to stop


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
    """A run in progress: where it stands, how it goes on, and what the loop calls besides.

    Attributes:
      step: the steps taken.
      test: the last measurements on the test split; empty before the first.
      notes: what to say of where it comes from.
      log: the progress line.
      hooks: called by the loop, in their order; the log is among them.
    """

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
            self.carry, self.notes = self._start()
        ckpt.write_config(workdir, config)
        ckpt.write_description(workdir, setup.description)
        self.step = int(self.carry.state.step)
        self.test: dict[str, float] = {}
        self._make_hooks(name)

    def _make_hooks(self, name: str) -> None:
        """Makes the log and the hooks; of several processes the first alone writes files."""
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
                # After the lines up to it, which must be there when it is, and before what a user
                # brings along, which may fail.
                Checkpointing(self.plan, evaluated, best, self.save),
                *map(UserHook, self.setup.hooks),
            )
        )

    def _start(self) -> tuple[Carry, list[str]]:
        """The carry to go on from, and what to say about where it comes from."""
        carry, lines = self.checkpoints.restore_newest(self.setup.abstract_carry)
        if carry is not None:
            return carry, lines
        carry, more = first_carry(self.setup, self.config)
        return carry, [*lines, *more]

    def compile(self) -> None:
        """Compiles the training step, unless that was done."""
        if said := convolutions_in_use():
            self.log.say(said)
        if cost := self.setup.runner.compile(self.carry):
            self.log.say(f"compiled the training step: {cost}")

    def advance(self, pace: "Pace", end: int) -> None:
        """Takes some steps: no more than the pace, and to ``end`` or the plan's next stop at most.

        Raises:
          TrainingFailed: the loss of one of them is not finite.
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
        """What the plan measures at this step; empty if it is nothing."""
        values = {}
        if self.plan.due(self.plan.log_every, self.step):
            values |= self._training_values()
            self.carry = self.carry._replace(metrics=self.setup.no_metrics())
        if self.plan.due(self.plan.eval_every, self.step):
            self.test = self._evaluate()
            split = self.setup.dataset.evaluated
            values |= {f"{split}/{name}": value for name, value in self.test.items()}
        return values | self.clock.measured(self.step) if values else {}

    def _training_values(self) -> Metrics:
        """The means since the last log, and the learning rate."""
        found = jax.device_get(self.carry.metrics).compute()
        rate = self.setup.learning_rate
        return {
            "train/loss": float(found["loss"]),
            "train/error": 100 * float(found["error"]),
            **({} if rate is None else {"learning_rate": float(rate(self.step - 1))}),
            **{f"routing/{name}": float(value) for name, value in found["routing"].items()},
        }

    def _loss(self) -> float:
        """The mean loss since the last log."""
        return float(jax.device_get(self.carry.metrics).compute()["loss"])

    def _evaluate(self) -> dict[str, float]:
        """The measurements on the test split, more of them at the end of training."""
        ended = self.step == self.plan.total
        evaluate = self.setup.evaluate_fully if ended else self.setup.evaluate
        return evaluate(self.carry.state.weights)

    def evaluate(self) -> None:
        """Evaluates, unless that was done in this run's time."""
        self.test = self.test or self._evaluate()

    def stop(self) -> None:
        """Saves, to go on from there another time."""
        self.save(None)
        self.log.say(f"stopped at step {self.step}; the same command goes on from there")

    def is_over(self) -> bool:
        """Whether nothing is left to train."""
        return self.step == self.plan.total or self.is_exhausted()

    def is_exhausted(self) -> bool:
        """Whether the error has been above its lowest for ``config.patience``.

        It depends on the step and on the best checkpoint alone, as a run that resumes finds them.
        """
        plan, step = self.plan, self.step
        if not plan.patience or step == plan.total or not plan.due(plan.eval_every, step):
            return False
        best = self.checkpoints.best_of(self.checkpoints.steps)
        return bool(processes.first_decides(best is not None and step - best >= plan.patience))

    def stop_early(self) -> None:
        """Saves the end of a run whose patience has run out, and says so."""
        split = self.setup.dataset.evaluated
        self.save(self.test["error"])
        best, lowest = self.checkpoints.best, self.checkpoints.best_error
        self.log.say(
            f"stopped early at step {self.step}: the {SPLITS[split]} error was lowest, "
            f"{lowest:.2f} %, at step {best} (patience={self.config.patience})"
        )

    def has_ended(self) -> None:
        """Says so, and measures the end once more."""
        self.log.say(f"this run has ended at step {self.step}; nothing is left to train")
        self.test = self._evaluate()

    def save(self, error: float | None) -> None:
        """Begins to write a checkpoint; ``error``: on the test split in %, where it is known.

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
        """How it ended, with all that belongs to it written."""
        with progress.at_work("writing the last checkpoint"):
            self.checkpoints.wait()
        paths = [self.workdir / ckpt.FOLDER, self.workdir / METRICS_FILE]
        best, split = self.checkpoints.best_error, self.setup.dataset.evaluated
        early = self.is_exhausted()
        return Result(self.step, self.plan.total, self.test, best, paths, split, early)


def first_carry(setup: Setup, config: ConfigDict) -> tuple[Carry, list[str]]:
    """The carry of step 0, of weights from ``config.init_from`` if it is set, and what to say."""
    carry, notes = setup.fresh_carry(config.seed), [*setup.notes]
    if not config.init_from:
        return carry, notes
    variables, found = ckpt.initialize_from(config, carry.state.variables, model=setup.model)
    carry = carry._replace(state=carry.state.with_variables(variables))
    notes += [f"starting from the weights of {config.init_from}", *found.lines]
    return carry, [*notes, *_other_normalization(found, setup.description)]


def _other_normalization(found: Comparison, data: Description) -> list[str]:
    """What to say if images were normalized otherwise when the weights were trained."""
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
    """How many steps a call takes. Where one begins and ends changes no result."""

    def __init__(self, steps_per_call: int | None = None):
        """``steps_per_call``: at most; None: as many as fit into `SECONDS_PER_CALL`, from one on.

        Raises:
          UserError: it is less than one.
        """
        if steps_per_call is not None and steps_per_call < 1:
            raise UserError(f"steps_per_call={steps_per_call} must be at least 1")
        self._fixed = steps_per_call
        self._steps = steps_per_call or 1

    def steps(self, limit: int) -> int:
        """Of the coming call, at most ``limit``."""
        return processes.first_decides(min(limit, self._steps))

    def measured(self, steps: int, seconds: float) -> None:
        """``steps`` took so long."""
        if self._fixed is None:
            self._steps = max(1, int(steps * SECONDS_PER_CALL / seconds))
