"""Interleaved timing: every round runs every contestant, and ratios are taken within the rounds.

A machine's speed drifts (clocks, caches, other users), and a median of one program's times over a
median of another's keeps the drift between them. Two timings that follow each other share it.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

Clock = Callable[[], float]
# Runs a contestant that many times and gives the seconds of all of them together.
Contestant = Callable[[int], float]

MOST_CALLS = 1000  # in one timing
FEWEST_ROUNDS = 3


class OutOfTime(Exception):
    """The benchmark's minutes are spent."""

    def __str__(self) -> str:
        return "the minutes are spent"


class Spread(NamedTuple):
    """The median of some numbers and their quartiles."""

    median: float
    low: float
    high: float


class Times:
    """The seconds that each contestant took, by round.

    Attributes:
      seconds: for each contestant's name, seconds a call, ``[rounds]``.
    """

    def __init__(self, seconds: Mapping[str, Sequence[float]]):
        self.seconds = {name: np.asarray(values) for name, values in seconds.items()}

    def milliseconds(self, name: str) -> float:
        """The median of one contestant, in ms."""
        return 1e3 * float(np.median(self.seconds[name]))

    def ratio(self, over: str, under: str, scale: float = 1.0) -> Spread:
        """``scale * over / under``, compared round by round."""
        return spread(scale * self.seconds[over] / self.seconds[under])


def spread(values: Sequence[float] | np.ndarray) -> Spread:
    """Median and quartiles."""
    low, median, high = np.percentile(values, (25, 50, 75))
    return Spread(float(median), float(low), float(high))


def calling(
    function: Callable[[], Any], block_each: bool, clock: Clock = time.perf_counter
) -> Contestant:
    """A function of no arguments as a contestant; its result, on the device, is waited for.

    Args:
      block_each: whether to wait after every call. An accelerator runs what it is given in order,
        so waiting for the last hides the cost of dispatch; a CPU may run several at a time.
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
    """Times the contestants in turn, in alternating order, after a call each to warm up.

    Args:
      rounds: how often each is timed.
      at_least: seconds that one timing lasts, made of as many calls as that takes.
      budget: seconds that all may last; the rounds become fewer, but not below `FEWEST_ROUNDS`.
      is_over: asked between two rounds whether the time for all is over; they end then.

    Raises:
      OutOfTime: before `FEWEST_ROUNDS`.
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
            # Turned round every time: going first, or after the same neighbour, would be a bias.
            order = list(contestants)[:: 1 if number % 2 == 0 else -1]
            taken = {name: contestants[name](calls[name]) / calls[name] for name in order}
        except OutOfTime:
            if number < FEWEST_ROUNDS:
                raise
            break
        for name, value in taken.items():
            seconds[name].append(value)
    return Times(seconds)
