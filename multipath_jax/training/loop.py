"""The loop: calls the step, and hangs logs, evaluation and checkpoints around it."""

import dataclasses
import time
from collections.abc import Callable

import jax
from clu import parameter_overview
from etils import epath
from ml_collections import ConfigDict

from multipath_jax.training import checkpoints as ckpt
from multipath_jax.training import curves
from multipath_jax.training.parts import Parts
from multipath_jax.training.step import Carry
from multipath_jax.training.writers import METRICS_FILE, Log

SECONDS_A_CALL = 1.0  # how often a run looks up: at the clock, the progress bar, a wish to stop


class TrainingFailed(RuntimeError):
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
    """

    step: int
    total: int
    test: dict[str, float]
    best_error: float | None
    paths: list[epath.Path]


def train(
    config: ConfigDict, workdir: epath.PathLike, should_stop: Callable[[], bool] = lambda: False
) -> Result:
    """Trains by the config, from the newest checkpoint of the workdir if it has one.

    Args:
      should_stop: asked about once a second; True ends the run with a checkpoint, from which the
        next call goes on as if it had never stopped.

    Raises:
      UserError: something that the user can mend.
      TrainingFailed: the loss is not finite.
    """
    workdir = epath.Path(workdir).expanduser().absolute()
    ckpt.check_workdir(workdir, config)
    ckpt.check_source(workdir, config)
    parts = Parts(config)
    ckpt.write_config(workdir, config)
    checkpoints = ckpt.Checkpoints(workdir)
    try:
        run = Run(parts, workdir, checkpoints)
        try:
            run.go(should_stop)
        finally:
            run.log.close()
        return run.result()
    finally:
        checkpoints.close()


class Run:
    """A run in progress: where it stands, and what it does at the steps that its plan names."""

    def __init__(self, parts: Parts, workdir: epath.Path, checkpoints: ckpt.Checkpoints):
        """Resumes, else starts from ``config.init_from``, else afresh."""
        self.parts, self.plan, self.config = parts, parts.plan, parts.config
        self.workdir, self.checkpoints = workdir, checkpoints
        self.carry, origin = self._start()
        self.step = int(self.carry.state.step)
        self.test: dict[str, float] = {}
        self._pace = Pace()
        self.log = Log(self.config, self.plan, workdir, self.step)
        self.log.say(
            parameter_overview.get_parameter_overview(self.carry.state.params, include_stats=False)
        )
        for line in origin:
            self.log.say(line)

    def _start(self) -> tuple[Carry, list[str]]:
        """The carry to go on from, and what to say about where it comes from."""
        latest = self.checkpoints.latest
        if latest is not None:
            lines = [f"resuming at step {latest} of {self.workdir}"]
            return self.checkpoints.restore(self.parts.abstract_carry, latest), lines
        carry = self.parts.fresh_carry()
        if self.config.init_from:
            transfer = ckpt.initialize_from(self.config.init_from, carry.state)
            lines = [
                f"starting from the weights of {self.config.init_from}",
                f"missing there, so fresh: {', '.join(transfer.missing) or 'none'}",
                f"extra there, so unused: {', '.join(transfer.extra) or 'none'}",
            ]
            return carry._replace(state=transfer.state), lines
        return carry, []

    def go(self, should_stop: Callable[[], bool]) -> None:
        """Trains to the end, or until asked to stop; a checkpoint is the last thing done."""
        if self.step == self.plan.total:
            self.log.say(f"this run has ended at step {self.step}; nothing is left to train")
            self.test = self.parts.evaluate(self.carry.state.variables)
            return
        self._compile()
        while self.step < self.plan.total:
            self._advance()
            self._hooks()
            if self.step < self.plan.total and should_stop():
                self._save(None)
                self.log.say(f"stopped at step {self.step}; the same command goes on from there")
                return

    def _compile(self) -> None:
        begun = time.monotonic()
        order = self.parts.order(self.carry.state, 0)
        self.parts.runner.compile(self.carry, self.parts.data, order)
        self.log.say(f"compiled the training step in {time.monotonic() - begun:.1f} s")

    def _advance(self) -> None:
        """About a second's worth of steps, no further than the next epoch or hook."""
        begun = time.monotonic()
        count = self._pace.steps(self.plan.next_stop(self.step) - self.step)
        epoch = self.step // self.plan.steps_per_epoch
        order = self.parts.order(self.carry.state, epoch)
        self.carry = self.parts.runner(self.carry, self.parts.data, order, count)
        fault = jax.device_get(self.carry.metrics.fault).compute()  # waits for the steps
        if fault:
            raise TrainingFailed(self._failure(f"the loss of step {fault}"))
        self.step += count
        seconds = time.monotonic() - begun
        self._pace.measured(count, seconds)
        self.log.advance(self.step, count, seconds)

    def _hooks(self) -> None:
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
            self.carry = self.carry._replace(metrics=self.parts.no_metrics())
        if due["evaluation"]:
            self.test = self.parts.evaluate(self.carry.state.variables)
            error = self.test["error"]
            values |= {f"test/{name}": value for name, value in self.test.items()}
        if values:
            # Before the checkpoint: the lines up to it must be there when it is.
            self.log.write(self.step, values)
        if due["evaluation"] or due["checkpoint"]:
            self._save(error)

    def _training_values(self) -> dict[str, float]:
        """What happened since the last log, by the names of ``metrics.jsonl``."""
        found = jax.device_get(self.carry.metrics).compute()
        return {
            "train/loss": float(found["loss"]),
            "train/error": 100 * float(found["error"]),
            "learning_rate": float(self.parts.learning_rate(self.step - 1)),
            **{f"routing/{name}": float(value) for name, value in found["routing"].items()},
        }

    def _save(self, error: float | None) -> None:
        if not self.parts.is_finite(self.carry.state):
            raise TrainingFailed(self._failure(f"a weight after step {self.step}"))
        self.checkpoints.save(self.step, self.carry, error)

    def _failure(self, what: str) -> str:
        last = self.checkpoints.latest
        kept = "no checkpoint was written before" if last is None else f"step {last} is kept"
        return f"{what} is not finite; {kept} (a lower schedule.rate may help)"

    def result(self) -> Result:
        """How it ended, with all that belongs to it written; draws ``curves.png``."""
        self.checkpoints.wait()
        drawn = curves.draw(self.workdir)
        paths = [self.workdir / ckpt.FOLDER, self.workdir / METRICS_FILE, *drawn]
        return Result(self.step, self.plan.total, self.test, self.checkpoints.best_error, paths)


class Pace:
    """How many steps fit into a second. Where a call begins and ends changes no result."""

    def __init__(self):
        self._steps = 1

    def steps(self, limit: int) -> int:
        """Of the coming call, at most ``limit``."""
        # Processes must agree on the length of a call without talking about it.
        return limit if jax.process_count() > 1 else min(limit, self._steps)

    def measured(self, steps: int, seconds: float) -> None:
        self._steps = max(1, int(steps * SECONDS_A_CALL / seconds))
