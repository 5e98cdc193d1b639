import importlib.util
import json
import sys

import pytest

from multipath_jax.errors import UserError
from multipath_jax.training import writers
from multipath_jax.training.config import default_config
from multipath_jax.training.schedule import Plan


def test_lines_past_the_checkpoint_are_put_aside(workdir):
    workdir.mkdir()
    file = writers.MetricsFile(workdir, last_step=0)
    for step in (5, 10, 15):
        file.write(step, {"loss": step / 2})
    file.close()
    path = workdir / writers.METRICS_FILE
    path.write_text(path.read_text() + '{"step": 20, "lo')  # a kill in mid-line
    file = writers.MetricsFile(workdir, last_step=12)
    file.write(15, {"loss": 1.0})
    file.close()
    assert [(line["step"], line["loss"]) for line in writers.read_metrics(workdir)] == [
        (5, 2.5),
        (10, 5.0),
        (15, 1.0),
    ]
    dropped = workdir / writers.DROPPED_FILE
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
    path, dropped = workdir / writers.METRICS_FILE, workdir / writers.DROPPED_FILE
    good = [b'{"step": 5,  "loss": 2.5}', b'{"step": 10, "loss": null}']  # as they are spaced
    path.write_bytes(b"\n".join([b"", good[0], spoilt, b"  ", good[1]]))
    expected = [{"step": 5, "loss": 2.5}, {"step": 10, "loss": None}]
    assert writers.read_metrics(workdir) == expected
    for _ in range(2):  # the second time nothing is left to put aside
        file = writers.MetricsFile(workdir, last_step=12)
        file.close()
        assert path.read_bytes() == b"\n".join(good) + b"\n"
        assert dropped.read_bytes() == spoilt + b"\n"


def test_what_was_put_aside_before_stays(workdir):
    workdir.mkdir()
    for last_step, steps in ((0, (5, 10)), (5, (10,)), (5, ())):
        file = writers.MetricsFile(workdir, last_step)
        for step in steps:
            file.write(step, {})
        file.close()
    assert (workdir / writers.DROPPED_FILE).read_text() == '{"step": 10}\n' * 2


def test_the_log_says_what_was_put_aside(workdir, capsys):
    workdir.mkdir()
    (workdir / writers.METRICS_FILE).write_text('{"step": 5}\n')
    config = default_config()
    config.tensorboard = "off"
    writers.Log(config, Plan(4, 8, (), 4, 4, 4), workdir, step=0).close()
    assert "what was past step 0 or unreadable, lines: 1" in capsys.readouterr().out


def test_what_is_not_finite_is_null(workdir):
    workdir.mkdir()
    file = writers.MetricsFile(workdir, last_step=0)
    file.write(1, {"a": float("nan"), "b": float("inf"), "c": 0.0})
    file.close()
    text = (workdir / writers.METRICS_FILE).read_text()
    assert json.loads(text) == {"step": 1, "a": None, "b": None, "c": 0.0}


def test_a_log_prints_and_counts(workdir, capsys, monkeypatch):
    workdir.mkdir()
    monkeypatch.setattr(writers.time, "monotonic", iter([100.0, 102.5, 102.5]).__next__)
    config = default_config()
    config.tensorboard, config.batch_size = "off", 10
    plan = Plan(4, 8, (), 4, 4, 4)
    log = writers.Log(config, plan, workdir, step=0)
    log.advance(1, steps=1, seconds=1.0)
    log.advance(4, steps=3, seconds=1.0)
    log.write(4, {"train/loss": 0.5, "test/error": 12.345})
    log.close()
    (line,) = writers.read_metrics(workdir)
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
    """A log of either would be full of carriage returns."""
    workdir.mkdir()
    for name in terminal:
        monkeypatch.setattr(getattr(sys, f"std{name}"), "isatty", lambda: True)
    config = default_config()
    config.tensorboard = "off"
    log = writers.Log(config, Plan(4, 8, (), 4, 4, 4), workdir, step=0)
    log.advance(4, steps=4, seconds=1.0)
    log.write(4, {})
    log.close()
    out, err = capsys.readouterr()
    assert ("\r" in out + err) == (len(terminal) == 2)
    assert "step 4/8" in out


def test_seconds_go_on_over_interruptions(workdir, monkeypatch):
    """What a later sitting does again, past its first step, is not counted twice."""
    workdir.mkdir()
    config = default_config()
    config.tensorboard = "off"
    plan = Plan(4, 12, (), 4, 4, 4)
    clock = iter([0.0, 3.0, 3.0, 50.0, 50.0, 1000.0, 1004.0, 1004.0])
    monkeypatch.setattr(writers.time, "monotonic", clock.__next__)
    for first, steps in ((0, (4, 8)), (4, (8,))):
        log = writers.Log(config, plan, workdir, step=first)
        for step in steps:
            log.write(step, {})
        log.close()
    assert [line["seconds"] for line in writers.read_metrics(workdir)] == [3.0, 7.0]


@pytest.mark.parametrize("missing", ["tensorflow", "tensorboard"])
def test_tensorboard_says_what_it_needs(workdir, monkeypatch, missing):
    """TensorFlow does not bring TensorBoard: either may be the one that is not there."""
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == missing else "there"
    )
    with pytest.raises(UserError, match=f"needs {missing}: pip install"):
        writers.TensorBoard(workdir, "on")
    silent = writers.TensorBoard(workdir, "auto")
    silent.write(1, {"a": 1.0})
    silent.close()
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0:00"), (59.6, "1:00"), (125.0, "2:05"), (3723.0, "1:02:03")]
)
def test_durations(seconds, text):
    assert writers.duration(seconds) == text
