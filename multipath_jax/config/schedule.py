"""Durations in steps, and learning rates: the paper's (Section 6.2), warm-up, cosine, linear."""

import dataclasses
import math
import re

import optax
from ml_collections import ConfigDict

from multipath_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Duration:
    """A number of epochs or of steps."""

    number: float
    unit: str  # "epochs" or "steps"

    def steps(self, steps_per_epoch: int) -> int:
        """In whole steps, at least one."""
        factor = steps_per_epoch if self.unit == "epochs" else 1
        return max(1, round(self.number * factor))


def parse_duration(key: str, text: str) -> Duration:
    """``"200 epochs"``, ``"1 epoch"``, ``"0.5 epochs"`` or ``"50 steps"`` as a `Duration`.

    Raises:
      UserError: anything else; names ``key``, the key of the config.
    """
    match = re.fullmatch(r"\s*(\d+\.?\d*)\s+(epoch|step)s?\s*", text)
    if not match or float(match[1]) == 0 or (match[2] == "step" and "." in match[1]):
        raise UserError(f"{key}={text!r} is no duration; write '200 epochs' or '50 steps'")
    return Duration(float(match[1]), match[2] + "s")


def parse_durations(key: str, text: str) -> list[Duration]:
    """``"80 epochs, 150 epochs"`` as a list; ``""`` as an empty one. Raises as `parse_duration`."""
    return [parse_duration(key, part) for part in text.split(",")] if text.strip() else []


def parse_window(key: str, text: str) -> tuple[int, int] | None:
    """``"100-110"`` as ``(100, 110)``, the steps from one to the other; ``""`` as None.

    Raises:
      UserError: anything else, or a window that is empty.
    """
    if not text.strip():
        return None
    match = re.fullmatch(r"\s*(\d+)\s*-\s*(\d+)\s*", text)
    if not match or int(match[1]) >= int(match[2]):
        raise UserError(f"{key}={text!r} is no range of steps; write '100-110'")
    return int(match[1]), int(match[2])


@dataclasses.dataclass(frozen=True)
class Plan:
    """A recipe in steps.

    Attributes:
      steps_per_epoch: whole batches in the training split.
      total: the step at which training ends.
      boundaries: the steps before which the learning rate falls.
      warmup: the first steps, in which it rises.
      log_every, eval_every, checkpoint_every: in steps.
      profile: the steps between which a trace is recorded, if any.
    """

    steps_per_epoch: int
    total: int
    boundaries: tuple[int, ...]
    log_every: int
    eval_every: int
    checkpoint_every: int
    profile: tuple[int, int] | None = None
    warmup: int = 0

    def due(self, every: int, step: int) -> bool:
        """Whether something that happens so often, and at the end, happens after ``step`` steps."""
        return step % every == 0 or step == self.total

    def next_stop(self, step: int) -> int:
        """The first step after ``step`` at which an epoch ends or something is due or begins."""
        intervals = (self.steps_per_epoch, self.log_every, self.eval_every, self.checkpoint_every)
        regular = [(step // every + 1) * every for every in intervals]
        return min(self.total, *regular, *(edge for edge in self.profile or () if edge > step))


def make_plan(config: ConfigDict, steps_per_epoch: int) -> Plan:
    """The config's durations in steps.

    Raises:
      UserError: a boundary at or past the end of training, or boundaries out of order; a
        warm-up that ends no sooner than the first drop or training; steps to trace past the end.
    """

    def steps(key):
        return parse_duration(key, config[key]).steps(steps_per_epoch)

    total = steps("train_for")
    boundaries = _boundaries(config, total, steps_per_epoch)
    warmup = _warmup(config, min((total, *boundaries)), steps_per_epoch)
    cadence = {key: steps(key) for key in ("log_every", "eval_every", "checkpoint_every")}
    profile = parse_window("profile", config.profile)
    if profile and profile[1] > total:
        raise UserError(f"profile={config.profile!r} reaches past the {total} steps of training")
    return Plan(steps_per_epoch, total, boundaries, **cadence, profile=profile, warmup=warmup)


def _boundaries(config: ConfigDict, total: int, steps_per_epoch: int) -> tuple[int, ...]:
    durations = parse_durations("schedule.boundaries", config.schedule.boundaries)
    boundaries = tuple(duration.steps(steps_per_epoch) for duration in durations)
    if list(boundaries) != sorted(set(boundaries)):
        raise UserError(f"schedule.boundaries={config.schedule.boundaries!r} must rise")
    if boundaries and boundaries[-1] >= total:
        raise UserError(
            f"schedule.boundaries={config.schedule.boundaries!r} reaches past the end of training, "
            f"train_for={config.train_for!r} (--config.schedule.boundaries= leaves them out)"
        )
    return boundaries


def _warmup(config: ConfigDict, end: int, steps_per_epoch: int) -> int:
    """The steps of the warm-up, which is over before the step ``end``."""
    text = config.schedule.warmup
    warmup = parse_duration("schedule.warmup", text).steps(steps_per_epoch) if text else 0
    if warmup >= end:
        raise UserError(
            f"schedule.warmup={text!r} must end before the first of schedule.boundaries and before "
            f"train_for={config.train_for!r} (--config.schedule.warmup= leaves it out)"
        )
    return warmup


def learning_rate(config: ConfigDict, plan: Plan) -> optax.Schedule:
    """The rate as a function of the step, counted from zero.

    Section 6.2: a constant rate, multiplied by ``schedule.factor`` at every boundary. Beyond the
    paper, half a cosine or a straight line, which fall to zero over the steps after the warm-up;
    and, in the n steps of the warm-up, rate / n, 2 rate / n, ... up to the rate.
    """
    rate = config.schedule.learning_rate
    falling = plan.total - plan.warmup
    if config.schedule.kind == "cosine":
        pieces = [optax.cosine_decay_schedule(rate, falling)]
    elif config.schedule.kind == "linear":
        pieces = [optax.linear_schedule(rate, 0.0, falling)]
    else:
        # Rates as exact powers, not as a running product: 0.1 * 0.1 * 0.1 is not 0.001.
        powers = [math.pow(config.schedule.factor, n) for n in range(len(plan.boundaries) + 1)]
        pieces = [optax.constant_schedule(rate * power) for power in powers]
    starts = plan.boundaries
    if plan.warmup:
        pieces.insert(0, optax.linear_schedule(rate / plan.warmup, rate, plan.warmup - 1))
        starts = (plan.warmup, *starts)
    return optax.join_schedules(pieces, starts)
