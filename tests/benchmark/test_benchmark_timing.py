"""The order of turns and the statistics of timings, with fake clocks."""

import numpy as np
import pytest

from multipath_jax.benchmark.timing import (
    FEWEST_ROUNDS,
    OutOfTime,
    Times,
    calling,
    interleave,
    spread,
)


class Recorder:
    """Contestants that take the given seconds per call, and record turns and numbers of calls."""

    def __init__(self, **seconds):
        self.turns = []
        self.contestants = {name: self._contestant(name, s) for name, s in seconds.items()}

    def _contestant(self, name, seconds):
        def run(calls):
            self.turns.append((name, calls))
            return calls * seconds

        return run


def test_all_take_turns_and_the_order_alternates():
    recorder = Recorder(a=1.0, b=2.0)
    times = interleave(recorder.contestants, rounds=4)
    names = "".join(name for name, _ in recorder.turns)
    assert names == "ab" + "ab" + "ab" + "ba" + "ab" + "ba"  # warm-up, estimate, four rounds
    np.testing.assert_array_equal(times.seconds["a"], [1.0] * 4)
    np.testing.assert_array_equal(times.seconds["b"], [2.0] * 4)


def test_a_timing_is_made_of_the_calls_that_it_takes():
    recorder = Recorder(short=0.03, long=0.5)
    times = interleave(recorder.contestants, rounds=3, at_least=0.1)
    assert set(recorder.turns[4:]) == {("short", 4), ("long", 1)}
    np.testing.assert_allclose(times.seconds["short"], [0.03] * 3)  # per call, not per timing


@pytest.mark.parametrize(
    ("budget", "rounds"), [(1000.0, 20), (30.0, 10), (0.1, FEWEST_ROUNDS), (float("inf"), 20)]
)
def test_a_budget_takes_rounds_away_but_never_all(budget, rounds):
    times = interleave(Recorder(a=1.0, b=2.0).contestants, rounds=20, budget=budget)
    assert len(times.seconds["a"]) == rounds


def test_time_that_is_over_ends_the_rounds_or_says_so():
    recorder = Recorder(a=1.0, b=2.0)
    over = iter([False] * 5 + [True])
    times = interleave(recorder.contestants, rounds=20, is_over=lambda: next(over))
    assert len(times.seconds["a"]) == len(times.seconds["b"]) == 5
    with pytest.raises(OutOfTime, match="the time limit is reached"):
        interleave(recorder.contestants, rounds=20, is_over=lambda: True)


def test_a_round_that_is_cut_short_does_not_count():
    turns = iter([1.0] * (2 + FEWEST_ROUNDS))  # warm-up, estimate, rounds

    def contestant(calls):
        try:
            return next(turns)
        except StopIteration:
            raise OutOfTime from None

    times = interleave({"b": lambda calls: 1.0, "a": contestant}, rounds=20)
    assert len(times.seconds["a"]) == len(times.seconds["b"]) == FEWEST_ROUNDS


def test_the_ratio_is_the_median_of_ratios_within_rounds():
    # The machine becomes four times slower during the run; the ratio within most rounds stays 2,
    # while the ratio of the medians is 4.
    times = Times({"a": [2.0, 2.0, 8.0, 8.0, 8.0], "b": [1.0, 2.0, 4.0, 4.0, 1.0]})
    assert times.ratio("a", "b") == (2.0, 2.0, 2.0)
    assert times.ratio("a", "b", scale=0.5).median == 1.0
    assert times.milliseconds("a") == 8000


def test_a_spread_is_the_median_and_the_quartiles():
    assert spread([4.0, 1.0, 3.0, 2.0, 5.0]) == (3.0, 2.0, 4.0)
    assert spread([7.0]) == (7.0, 7.0, 7.0)


def test_a_function_becomes_a_contestant():
    ticks = iter([10.0, 13.0])
    calls = []
    run = calling(lambda: calls.append(0), block_each=True, clock=lambda: next(ticks))
    assert run(5) == 3.0
    assert len(calls) == 5
