"""Progress lines during long operations."""

import sys
import time

import pytest

from multipath_jax.utils import progress


@pytest.fixture
def lines(monkeypatch):
    """The printed lines; they come without delay, because `SILENCE` and `SOON` are 0."""
    said = []
    monkeypatch.setattr(progress, "SILENCE", 0.0)
    monkeypatch.setattr(progress, "SOON", 0.0)
    monkeypatch.setattr(progress, "say", said.append)
    return said


def wait_for(lines, count):
    deadline = time.monotonic() + 60
    while len(lines) < count:
        assert time.monotonic() < deadline, lines
        time.sleep(0.001)


def fail_after(lines, count):
    wait_for(lines, count)
    raise ZeroDivisionError


def test_long_work_is_announced_and_goes_on_being_said(lines):
    with progress.at_work("reading digits", announce=True):
        wait_for(lines, 3)
    before = len(lines)
    assert lines[0] == "reading digits"
    assert lines[1].startswith("reading digits: 0:0")
    time.sleep(0.01)
    assert len(lines) == before  # no lines after the end of the body


def test_an_error_ends_it_too(lines):
    with pytest.raises(ZeroDivisionError), progress.at_work("evaluating"):
        fail_after(lines, 1)
    before = len(lines)
    time.sleep(0.01)
    assert len(lines) == before


def test_on_a_terminal_nothing_is_said(lines, monkeypatch):
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    with progress.at_work("reading digits", announce=True):
        time.sleep(0.01)
    assert lines == []


def test_short_work_says_nothing(lines, monkeypatch):
    monkeypatch.setattr(progress, "SILENCE", 1e6)
    monkeypatch.setattr(progress, "SOON", 1e6)
    with progress.at_work("reading digits", announce=True):
        pass
    assert lines == []


def test_an_output_that_is_gone_is_no_error_of_the_reminder(lines, monkeypatch):
    """The thread ignores errors of stdout, which the main thread reports when it prints."""
    tried = []

    def say(text):
        tried.append(text)
        raise BrokenPipeError

    monkeypatch.setattr(progress, "say", say)
    with progress.at_work("evaluating"):
        wait_for(tried, 1)
        time.sleep(0.01)
    assert len(tried) == 1


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0:00"), (59.6, "1:00"), (125.0, "2:05"), (3723.0, "1:02:03")]
)
def test_durations(seconds, text):
    assert progress.duration(seconds) == text
