import contextlib
import importlib.util
import json
import sys
import time

import pytest

from multipath_jax import metrics_file
from multipath_jax.config.schedule import Plan
from multipath_jax.errors import UserError
from multipath_jax.training import hooks
from multipath_jax.utils import progress


def test_lines_past_the_checkpoint_are_put_aside(workdir):
    workdir.mkdir()
    file = hooks.MetricsFile(workdir, last_step=0)
    for step in (5, 10, 15):
        file(step, {"loss": step / 2})
    file.close()
    path = workdir / metrics_file.METRICS_FILE
    path.write_text(path.read_text() + '{"step": 20, "lo')  # killed while writing a line
    file = hooks.MetricsFile(workdir, last_step=12)
    file(15, {"loss": 1.0})
    file.close()
    assert [(line["step"], line["loss"]) for line in metrics_file.read_metrics(workdir)] == [
        (5, 2.5),
        (10, 5.0),
        (15, 1.0),
    ]
    dropped = workdir / metrics_file.DROPPED_FILE
    assert {*workdir.iterdir()} == {path, dropped}
    lost = dropped.read_text().splitlines()
    assert lost[-1] == '{"step": 20, "lo'
    assert [json.loads(line) for line in lost[:-1]] == [{"step": 15, "loss": 7.5}]


SPOILT = {
    "cut short": b'{"step": 7, "lo',
    "a merge": b"<<<<<<< ours",
    "no object": b"[1, 2]",
    "a number": b"7",
    "null": b"null",
    "no step": b'{"loss": 1.0}',
    "no number of a step": b'{"step": "seven"}',
    "no number": b'{"step": 7, "loss": "small"}',
    "not finite": b'{"step": 7, "loss": NaN}',
    "infinite": b'{"step": 7, "loss": 1e999}',
    "not UTF-8": b'{"step": 7, "l\xff\xfe": 1.0}',
    "too deep": b"[" * 100_000,
}


@pytest.mark.parametrize("spoilt", SPOILT.values(), ids=SPOILT)
def test_a_spoilt_line_is_passed_over_and_kept(workdir, spoilt):
    workdir.mkdir()
    path, dropped = workdir / metrics_file.METRICS_FILE, workdir / metrics_file.DROPPED_FILE
    good = [b'{"step": 5,  "loss": 2.5}', b'{"step": 10, "loss": null}']  # the spacing is kept
    path.write_bytes(b"\n".join([b"", good[0], spoilt, b"  ", good[1]]))
    expected = [{"step": 5, "loss": 2.5}, {"step": 10, "loss": None}]
    assert metrics_file.read_metrics(workdir) == expected
    for _ in range(2):  # the second time, nothing is left to move
        file = hooks.MetricsFile(workdir, last_step=12)
        file.close()
        assert path.read_bytes() == b"\n".join(good) + b"\n"
        assert dropped.read_bytes() == spoilt + b"\n"


def test_what_was_put_aside_before_stays(workdir):
    workdir.mkdir()
    for last_step, steps in ((0, (5, 10)), (5, (10,)), (5, ())):
        file = hooks.MetricsFile(workdir, last_step)
        for step in steps:
            file(step, {"loss": 1.0})
        file.close()
    assert (workdir / metrics_file.DROPPED_FILE).read_text() == '{"step": 10, "loss": 1.0}\n' * 2


def test_what_was_put_aside_is_said(workdir):
    workdir.mkdir()
    (workdir / metrics_file.METRICS_FILE).write_text('{"step": 5}\n')
    said = f"to {workdir / metrics_file.DROPPED_FILE}: what was past step 0 or unreadable, lines: 1"
    with contextlib.closing(hooks.MetricsFile(workdir, last_step=0)) as file:
        assert file.notes == [f"moved from {metrics_file.METRICS_FILE} {said}"]
    with contextlib.closing(hooks.MetricsFile(workdir, last_step=0)) as file:
        assert file.notes == []


def test_what_is_not_finite_is_null(workdir):
    workdir.mkdir()
    file = hooks.MetricsFile(workdir, last_step=0)
    file(1, {"a": float("nan"), "b": float("inf"), "c": 0.0})
    file.close()
    text = (workdir / metrics_file.METRICS_FILE).read_text()
    assert json.loads(text) == {"step": 1, "a": None, "b": None, "c": 0.0}


class Clock:
    """A clock that replaces `time.monotonic`."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


class Measured:
    """The hooks that measure and write times, set up as in a run."""

    def __init__(self, workdir, total=8, step=0, loss=float):
        workdir.mkdir(exist_ok=True)
        plan = Plan(4, total, (), 4, 4, 4)
        file = hooks.MetricsFile(workdir, step)
        self.clock = hooks.Clock(plan, 10, step, file.seconds)
        self.log = hooks.Log(plan, self.clock, workdir, step, loss)
        self.hooks = hooks.Hooks((self.clock, file, self.log))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.hooks.close()
        self.log.__exit__(*error)

    def advance(self, step, count, seconds):
        self.hooks.after_steps(step, count, seconds)

    def write(self, step, metrics):
        self.hooks(step, metrics | self.clock.measured(step))


def test_a_log_prints_and_counts(workdir, capsys, clock):
    with Measured(workdir) as log:
        log.advance(1, 1, 1.0)
        log.advance(4, 3, 1.0)
        clock.now += 2.5
        log.write(4, {"train/loss": 0.5, "test/error": 12.345})
    (line,) = metrics_file.read_metrics(workdir)
    assert line == {
        "step": 4,
        "train/loss": 0.5,
        "test/error": 12.345,
        "epoch": 1.0,
        "images_per_second": 20.0,
        "seconds": 2.5,
    }
    printed = capsys.readouterr().out
    assert "step 4/8  epoch 1.00  loss 0.5000  test error 12.35 %  20 images/s" in printed


@pytest.mark.parametrize("terminal", [("out",), ("err",), ("out", "err")])
def test_a_bar_is_drawn_where_both_streams_are_a_terminal(workdir, capsys, monkeypatch, terminal):
    """A bar would fill the log with carriage returns if either stream were redirected."""
    for name in terminal:
        monkeypatch.setattr(getattr(sys, f"std{name}"), "isatty", lambda: True)
    with Measured(workdir) as log:
        log.advance(4, 4, 1.0)
        log.write(4, {})
    out, err = capsys.readouterr()
    assert ("\r" in out + err) == (len(terminal) == 2)
    assert "step 4/8" in out


def test_between_two_measurements_a_line_says_how_far_a_run_is(workdir, capsys, clock):
    """These lines are not written to metrics.jsonl, which only has the lines of the plan."""
    with Measured(workdir, total=400, loss=lambda: 0.25) as log:
        clock.now += 600  # compilation: not part of the remaining time
        progress.say("compiled")
        for step in range(1, 101):
            clock.now += 1
            log.advance(step, 1, 1.0)
        first, *others = capsys.readouterr().out.splitlines()[1:]
        assert first == "step 25/400  epoch 6.25  loss 0.2500  10 images/s  6:15 left"
        assert [line.split()[1] for line in others] == ["50/400", "75/400", "100/400"]
        clock.now += 20
        log.write(101, {"train/loss": 0.5})
        clock.now += 20
        log.advance(102, 1, 20.0)
        assert "step 102/" not in capsys.readouterr().out
    assert [line["step"] for line in metrics_file.read_metrics(workdir)] == [101]


def test_on_a_terminal_the_bar_is_enough(workdir, capsys, clock, monkeypatch):
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    with Measured(workdir, loss=lambda: pytest.fail("nobody sees it")) as log:
        clock.now += 100
        log.advance(1, 1, 100.0)
    assert "step 1/" not in capsys.readouterr().out


def test_seconds_go_on_over_interruptions(workdir, clock):
    """Steps after the checkpoint, which a resumed run repeats, are not counted twice."""
    for first, moments in ((0, {4: 3.0, 8: 47.0}), (4, {8: 4.0})):
        with Measured(workdir, total=12, step=first) as log:
            for step, seconds in moments.items():
                clock.now += seconds
                log.write(step, {})
        clock.now += 1000
    assert [line["seconds"] for line in metrics_file.read_metrics(workdir)] == [3.0, 7.0]


@pytest.mark.parametrize("missing", ["tensorflow", "tensorboard"])
def test_tensorboard_says_what_it_needs(workdir, monkeypatch, missing):
    """TensorFlow does not install TensorBoard, so either of them may be missing."""
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == missing else "there"
    )
    with pytest.raises(UserError, match=f"needs {missing}: pip install"):
        hooks.TensorBoard(workdir, "on")
    silent = hooks.TensorBoard(workdir, "auto")
    silent(1, {"a": 1.0})
    silent.close()
    assert not workdir.exists()
