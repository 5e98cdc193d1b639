"""``config.profile``: the steps that were asked for, in a file that opens."""

import gzip
import json
import pathlib

import pytest
import tiny

from multipath_jax.trainer import train
from multipath_jax.training import loop

pytestmark = pytest.mark.usefixtures("tiny_model")
CHANGES = {"train_for": "12 steps", "schedule.boundaries": "", "profile": "4-7"}


def traced(workdir):
    """The events of each trace in the workdir."""
    paths = sorted(pathlib.Path(workdir, "profile").glob("**/perfetto_trace.json.gz"))
    return [json.loads(gzip.decompress(path.read_bytes()))["traceEvents"] for path in paths]


def test_the_steps_asked_for_are_traced(data_dir, workdir, capsys, monkeypatch):
    monkeypatch.setattr(loop.Pace, "steps", lambda _, limit: min(limit, 1))
    train(tiny.tiny_config(data_dir, **CHANGES), workdir)
    assert "wrote a trace of the steps 4-7" in capsys.readouterr().out
    (events,) = traced(workdir)
    begun = [event["args"]["step_num"] for event in events if event.get("name") == "train"]
    assert begun == ["4", "5", "6"]
    assert any("dot" in str(event.get("name")) for event in events)  # the device's work is in it
    assert list(pathlib.Path(workdir, "profile").glob("**/*.xplane.pb"))  # what TensorBoard reads


@pytest.mark.slow
def test_a_run_that_stops_in_between_writes_what_it_has(data_dir, workdir, monkeypatch):
    monkeypatch.setattr(loop.Pace, "steps", lambda _, limit: min(limit, 1))
    calls = iter([False] * 4 + [True])
    config = tiny.tiny_config(data_dir, **CHANGES)
    assert train(config, workdir, should_stop=lambda: next(calls)).step == 5
    assert len(traced(workdir)) == 1
    train(config, workdir)  # past the beginning of the window: nothing more to trace
    assert len(traced(workdir)) == 1
