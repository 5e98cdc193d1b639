"""Interleaved timing: every round runs every contestant, and ratios are computed within rounds.

The speed of a machine drifts (clock frequency, caches, other users). Timings in the same round are
affected equally, so their ratio is not, unlike the ratio of two medians.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

Clock = Callable[[], float]
# A function that runs something a number of times and returns the seconds of all calls together.
Contestant = Callable[[int], float]

MOST_CALLS = 1000  # per timing
FEWEST_ROUNDS = 3


class OutOfTime(Exception):
    """The time limit of the benchmark is reached."""

    def __str__(self) -> str:
        return "the time limit is reached"


class Spread(NamedTuple):
    """The median of some numbers, and their lower and upper quartiles."""

    median: float
    low: float
    high: float


class Times:
    """The times of all contestants in all rounds.

    Attributes:
      seconds: seconds per call by contestant, ``[rounds]``.
    """

    def __init__(self, seconds: Mapping[str, Sequence[float]]):
        self.seconds = {name: np.asarray(values) for name, values in seconds.items()}

    def milliseconds(self, name: str) -> float:
        """The median time per call of a contestant, in milliseconds."""
        return 1e3 * float(np.median(self.seconds[name]))

    def ratio(self, over: str, under: str, scale: float = 1.0) -> Spread:
        """Median and quartiles of ``scale * over / under``, computed round by round."""
        return spread(scale * self.seconds[over] / self.seconds[under])


def spread(values: Sequence[float] | np.ndarray) -> Spread:
    """The median and quartiles of some values."""
    low, median, high = np.percentile(values, (25, 50, 75))
    return Spread(float(median), float(low), float(high))


def calling(
    function: Callable[[], Any], block_each: bool, clock: Clock = time.perf_counter
) -> Contestant:
    """Makes a contestant of a function without arguments that returns arrays.

    Args:
      function: the function.
      block_each: whether to block after every call, not only after the last. Accelerators run calls
        in order, so blocking once hides the dispatch; CPUs may run several calls concurrently.
      clock: returns the time in seconds.
    """

    def run(calls: int) -> float:
        start = clock()
        for _ in range(calls):
            result = function()
            if block_each:
                jax.block_until_ready(result)
        jax.block_until_ready(result)
        return clock() - start

    return run


def interleave(
    contestants: Mapping[str, Contestant],
    rounds: int,
    at_least: float = 0.0,
    budget: float = math.inf,
    is_over: Callable[[], bool] = lambda: False,
) -> Times:
    """Times contestants in rounds, in alternating order, after a warm-up call of each.

    Args:
      contestants: the contestants by name.
      rounds: number of timings of each.
      at_least: shortest duration of a timing in seconds; determines the number of calls.
      budget: longest duration of all timings in seconds; reduces the number of rounds, down to
        `FEWEST_ROUNDS`.
      is_over: checked between rounds; returns whether to end.

    Raises:
      OutOfTime: the time limit was reached before `FEWEST_ROUNDS` rounds.
    """
    for run in contestants.values():
        run(1)
    once = {name: max(run(1), 1e-9) for name, run in contestants.items()}
    calls = {name: min(MOST_CALLS, math.ceil(at_least / s) or 1) for name, s in once.items()}
    round_seconds = sum(calls[name] * once[name] for name in contestants)
    rounds = min(rounds, max(FEWEST_ROUNDS, int(min(budget / round_seconds, rounds))))

    seconds = {name: [] for name in contestants}
    for number in range(rounds):
        try:
            if is_over():
                raise OutOfTime
            # Alternating order: always running first, or after the same contestant, is a bias.
            order = list(contestants)[:: 1 if number % 2 == 0 else -1]
            taken = {name: contestants[name](calls[name]) / calls[name] for name in order}
        except OutOfTime:
            if number < FEWEST_ROUNDS:
                raise
            break
        for name, value in taken.items():
            seconds[name].append(value)
    return Times(seconds)
