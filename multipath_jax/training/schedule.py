"""Durations in steps, and the paper's learning rates (Section 6.2)."""

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
      drops: the steps before which the learning rate falls.
      log_every, eval_every, checkpoint_every: in steps.
      profile: the steps between which a trace is recorded, if any.
    """

    steps_per_epoch: int
    total: int
    drops: tuple[int, ...]
    log_every: int
    eval_every: int
    checkpoint_every: int
    profile: tuple[int, int] | None = None

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
      UserError: a learning-rate drop at or past the end of training, or drops out of order; steps
        to trace past the end.
    """

    def steps(key):
        return parse_duration(key, config[key]).steps(steps_per_epoch)

    total = steps("train_for")
    durations = parse_durations("schedule.drops", config.schedule.drops)
    drops = tuple(duration.steps(steps_per_epoch) for duration in durations)
    if list(drops) != sorted(set(drops)):
        raise UserError(f"schedule.drops={config.schedule.drops!r} must rise")
    if drops and drops[-1] >= total:
        raise UserError(
            f"schedule.drops={config.schedule.drops!r} reaches past the end of training, "
            f"train_for={config.train_for!r} (--config.schedule.drops= leaves the drops out)"
        )
    cadence = {key: steps(key) for key in ("log_every", "eval_every", "checkpoint_every")}
    profile = parse_window("profile", config.profile)
    if profile and profile[1] > total:
        raise UserError(f"profile={config.profile!r} reaches past the {total} steps of training")
    return Plan(steps_per_epoch, total, drops, **cadence, profile=profile)


def learning_rate(config: ConfigDict, plan: Plan) -> optax.Schedule:
    """Section 6.2: a constant rate, multiplied by ``schedule.factor`` at every drop."""
    # Rates as exact powers, not as a running product: 0.1 * 0.1 * 0.1 is not 0.001.
    rates = [
        config.schedule.rate * math.pow(config.schedule.factor, n)
        for n in range(len(plan.drops) + 1)
    ]
    return optax.join_schedules([optax.constant_schedule(rate) for rate in rates], plan.drops)
