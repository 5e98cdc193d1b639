"""Durations in steps, and learning rate schedules: step (Section 6.2), cosine, linear, warm-up."""

import dataclasses
import math
import re

import optax
from ml_collections import ConfigDict

from multipath_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Duration:
    """A number of epochs or of steps.

    Attributes:
      number: how many.
      unit: "epochs" or "steps".
    """

    number: float
    unit: str

    def steps(self, steps_per_epoch: int) -> int:
        """The duration in steps, rounded, at least one."""
        factor = steps_per_epoch if self.unit == "epochs" else 1
        return max(1, round(self.number * factor))


def parse_duration(key: str, text: str) -> Duration:
    """Parses ``"200 epochs"``, ``"1 epoch"``, ``"0.5 epochs"`` or ``"50 steps"``.

    Args:
      key: the config key that has this value, for error messages.
      text: the duration.

    Raises:
      UserError: the text is not a duration.
    """
    match = re.fullmatch(r"\s*(\d+\.?\d*)\s+(epoch|step)s?\s*", text)
    if not match or float(match[1]) == 0 or (match[2] == "step" and "." in match[1]):
        raise UserError(f"{key}={text!r} is not a duration; write '200 epochs' or '50 steps'")
    return Duration(float(match[1]), match[2] + "s")


def parse_durations(key: str, text: str) -> list[Duration]:
    """Parses ``"80 epochs, 150 epochs"`` into a list; ``""`` gives an empty list.

    Arguments and errors are those of `parse_duration`.
    """
    try:
        return [parse_duration(key, part) for part in text.split(",")] if text.strip() else []
    except UserError as error:
        raise UserError(
            f"{key}={text!r} is not a list of durations; write '80 epochs, 150 epochs'"
        ) from error


def parse_window(key: str, text: str) -> tuple[int, int] | None:
    """Parses a range of steps: ``"100-110"`` gives ``(100, 110)``, ``""`` gives None.

    Args:
      key: the config key that has this value, for error messages.
      text: the range.

    Raises:
      UserError: the text is not a range, or the range is empty.
    """
    if not text.strip():
        return None
    match = re.fullmatch(r"\s*(\d+)\s*-\s*(\d+)\s*", text)
    if not match or int(match[1]) >= int(match[2]):
        raise UserError(f"{key}={text!r} is not a range of steps; write '100-110'")
    return int(match[1]), int(match[2])


@dataclasses.dataclass(frozen=True)
class Plan:
    """All durations of a config, in steps.

    Attributes:
      steps_per_epoch: number of whole batches in the training split.
      total: the step at which training ends.
      boundaries: the steps at which the learning rate is multiplied by ``schedule.factor``.
      log_every, eval_every, checkpoint_every: intervals, in steps.
      profile: first and last step of the profiler trace; None if nothing is traced.
      warmup: number of steps of the linear warm-up.
      head_first: number of steps in which only the head is trained.
      patience: number of steps that the error may be above its lowest; 0: any number.
    """

    steps_per_epoch: int
    total: int
    boundaries: tuple[int, ...]
    log_every: int
    eval_every: int
    checkpoint_every: int
    profile: tuple[int, int] | None = None
    warmup: int = 0
    head_first: int = 0
    patience: int = 0

    def due(self, every: int, step: int) -> bool:
        """Whether an event with the interval ``every`` is due after ``step`` steps.

        Every event is due at the end of training.
        """
        return step % every == 0 or step == self.total

    def next_stop(self, step: int) -> int:
        """The first step after ``step`` at which an epoch, an interval or the trace ends."""
        intervals = (self.steps_per_epoch, self.log_every, self.eval_every, self.checkpoint_every)
        regular = [(step // every + 1) * every for every in intervals]
        return min(self.total, *regular, *(edge for edge in self.profile or () if edge > step))


def make_plan(config: ConfigDict, steps_per_epoch: int) -> Plan:
    """Converts the durations of a config to steps.

    Args:
      config: the whole config.
      steps_per_epoch: number of whole batches in the training split.

    Raises:
      UserError: boundaries are out of order, or at or past the end of training; the warm-up does
        not end before the first boundary; the steps to trace are past the end of training.
    """

    def steps(key):
        return parse_duration(key, config[key]).steps(steps_per_epoch)

    def steps_if_set(key, text):
        return parse_duration(key, text).steps(steps_per_epoch) if text else 0

    total = steps("train_for")
    boundaries = _boundaries(config, total, steps_per_epoch)
    warmup = _warmup(config, min((total, *boundaries)), steps_per_epoch)
    cadence = {key: steps(key) for key in ("log_every", "eval_every", "checkpoint_every")}
    profile = parse_window("profile", config.profile)
    if profile and profile[1] > total:
        raise UserError(f"profile={config.profile!r} reaches past the {total} steps of training")
    return Plan(
        steps_per_epoch,
        total,
        boundaries,
        **cadence,
        profile=profile,
        warmup=warmup,
        head_first=steps_if_set("finetune.head_first", config.finetune.head_first),
        patience=steps_if_set("patience", config.patience),
    )


def _boundaries(config: ConfigDict, total: int, steps_per_epoch: int) -> tuple[int, ...]:
    durations = parse_durations("schedule.boundaries", config.schedule.boundaries)
    boundaries = tuple(duration.steps(steps_per_epoch) for duration in durations)
    if list(boundaries) != sorted(set(boundaries)):
        raise UserError(f"schedule.boundaries={config.schedule.boundaries!r} must be increasing")
    if boundaries and boundaries[-1] >= total:
        raise UserError(
            f"schedule.boundaries={config.schedule.boundaries!r} reaches past the end of training, "
            f"train_for={config.train_for!r} (--config.schedule.boundaries= removes them)"
        )
    return boundaries


def _warmup(config: ConfigDict, end: int, steps_per_epoch: int) -> int:
    """The number of warm-up steps. Raises UserError unless it is less than ``end``."""
    text = config.schedule.warmup
    warmup = parse_duration("schedule.warmup", text).steps(steps_per_epoch) if text else 0
    if warmup >= end:
        raise UserError(
            f"schedule.warmup={text!r} must end before the first of schedule.boundaries and before "
            f"train_for={config.train_for!r} (--config.schedule.warmup= removes it)"
        )
    return warmup


def learning_rate(config: ConfigDict, plan: Plan) -> optax.Schedule:
    """The learning rate schedule of a config.

    Section 6.2: a constant rate, multiplied by ``schedule.factor`` at every boundary. Beyond the
    paper: a cosine or linear decay to zero over the steps after the warm-up, and a linear warm-up
    with the rates rate / n, 2 rate / n, ..., rate in its n steps.

    Args:
      config: the whole config.
      plan: its durations in steps.

    Returns:
      An optax schedule: a function from the step, counted from zero, to the learning rate.
    """
    rate = config.schedule.learning_rate
    falling = plan.total - plan.warmup
    if config.schedule.kind == "cosine":
        pieces = [optax.cosine_decay_schedule(rate, falling)]
    elif config.schedule.kind == "linear":
        pieces = [optax.linear_schedule(rate, 0.0, falling)]
    else:
        # Exact powers instead of a running product: 0.1 * 0.1 * 0.1 is not 0.001.
        powers = [math.pow(config.schedule.factor, n) for n in range(len(plan.boundaries) + 1)]
        pieces = [optax.constant_schedule(rate * power) for power in powers]
    starts = plan.boundaries
    if plan.warmup:
        pieces.insert(0, optax.linear_schedule(rate / plan.warmup, rate, plan.warmup - 1))
        starts = (plan.warmup, *starts)
    return optax.join_schedules(pieces, starts)
