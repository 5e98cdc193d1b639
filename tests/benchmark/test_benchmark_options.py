"""Options in separate processes, compared to the default step."""

import dataclasses
from typing import get_args

import pytest

from multipath_jax.benchmark import options
from multipath_jax.benchmark.options import Option
from multipath_jax.benchmark.process_pool import Worker, WorkerFailed
from multipath_jax.benchmark.settings import MAIN, Problem, Settings
from multipath_jax.benchmark.steps import Dispatch
from multipath_jax.benchmark.timing import OutOfTime

PROBLEM = Problem("BaseCNN-2-CC", 2, (32, 32, 3), 10, "float32")
SETTINGS = Settings("cpu", True, 3, 0.0, 1.0, 64, 1)


class StandIn(Worker):
    """A fake worker whose steps take the given number of seconds."""

    def __init__(self, seconds):
        self._seconds, self.ready = seconds, {"startup": 1.0, "compile": 2.0}

    def __call__(self, calls):
        return self._seconds * calls

    def close(self):
        pass


def measured(monkeypatch, seconds):
    """Returns the rows for options with the given seconds per step; the default step takes 1 s."""
    table = {words: Option(number) for number, words in enumerate(seconds, start=1)}
    taken = [1.0, *seconds.values()]

    def worker(settings, problem, option):
        found = taken[option.dispatch or 0]
        if isinstance(found, Exception):
            raise found
        return StandIn(found)

    monkeypatch.setitem(options.OPTIONS_OF, "cpu", table)
    monkeypatch.setattr(options, "_worker", worker)
    return list(options._measure(SETTINGS, PROBLEM))


def test_the_fastest_is_named_and_what_cannot_run_stops_nothing(monkeypatch):
    unknown = WorkerFailed("Unknown flag in XLA_FLAGS: --xla_not")
    rows = measured(monkeypatch, {"slow": 1.5, "unknown": unknown, "fast": 0.75, "fair": 0.875})
    assert [row.ratio and row.ratio.median for row in rows] == [1.5, None, 0.75, 0.875]
    assert rows[0].note == "fastest: as it is (1.000)"
    assert rows[1].note == f"not measured: {unknown}; fastest: as it is"
    assert rows[-1].note == "fastest: fast (0.750)"
    assert [row.subject.rpartition(": ")[2] for row in rows] == ["slow", "unknown", "fast", "fair"]
    assert rows[2].figures["option images/s"] == pytest.approx(2 / 0.75)


def test_those_that_there_is_no_time_for_are_named(monkeypatch):
    rows = measured(monkeypatch, {"fast": 0.5, "late": OutOfTime(), "later": OutOfTime()})
    assert [row.ratio is None for row in rows] == [False, True, True]
    assert rows[-1].note == "not measured: the time limit is reached; fastest: fast"


def test_flags_are_added_and_replace_those_of_the_same_name(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=1 --xla_b=2")
    assert Option().environment() == {"XLA_FLAGS": "--xla_a=1 --xla_b=2"}
    changed = Option(xla=("--xla_b=", "--xla_c=3")).environment()
    assert changed == {"XLA_FLAGS": "--xla_a=1 --xla_b= --xla_c=3"}
    assert Option(variables={"A": "1"}).environment()["A"] == "1"


def test_every_option_changes_something():
    """Includes the options for GPUs, which can be checked without a GPU."""
    for table in options.OPTIONS_OF.values():
        for option in table.values():
            assert option.dispatch or option.xla or option.network or option.variables
            assert all(flag.startswith("--xla_") and "=" in flag for flag in option.xla)
            if isinstance(option.dispatch, str):
                assert option.dispatch in get_args(get_args(Dispatch)[1])


def test_a_quick_run_looks_at_one_network():
    many = dataclasses.replace(SETTINGS, platform="gpu", quick=False)
    few = dataclasses.replace(many, quick=True)
    found = [[p.network for p in options.OPTIONS.cases(one)] for one in (few, many)]
    assert found == [[*MAIN[:1]], [*MAIN[:3]]]


@pytest.mark.slow
def test_real_processes_with_flags(monkeypatch):
    """Tries a flag that XLA knows, and an unknown flag, which ends the process."""
    table = {
        "two steps a dispatch": Option(2),
        "unknown": Option(xla=("--xla_no_such_flag=1",)),
        "known": Option(xla=("--xla_cpu_enable_fast_math=true",)),
    }
    monkeypatch.setitem(options.OPTIONS_OF, "cpu", table)
    two, unknown, known = options._measure(SETTINGS, PROBLEM)
    assert two.ratio
    assert two.figures["option compile s"] > two.figures["usual compile s"]
    assert "xla_no_such_flag" in unknown.note
    assert known.ratio
