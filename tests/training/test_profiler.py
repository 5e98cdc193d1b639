"""``config.profile``: writes a readable trace of the requested steps."""

import gzip
import json
import pathlib

import pytest
import tiny

CHANGES = {"train_for": "12 steps", "schedule.boundaries": "", "profile": "4-7"}


def traced(workdir):
    """The events of each trace in the workdir."""
    paths = sorted(pathlib.Path(workdir, "profile").glob("**/perfetto_trace.json.gz"))
    return [json.loads(gzip.decompress(path.read_bytes()))["traceEvents"] for path in paths]


def test_the_steps_asked_for_are_traced(data_dir, workdir, capsys):
    tiny.train(tiny.tiny_config(data_dir, **CHANGES), workdir, steps_per_call=1)
    assert "wrote a trace of the steps 4-7" in capsys.readouterr().out
    (events,) = traced(workdir)
    begun = [event["args"]["step_num"] for event in events if event.get("name") == "train"]
    assert begun == ["4", "5", "6"]
    assert any("dot" in str(event.get("name")) for event in events)  # the device's operations
    assert list(pathlib.Path(workdir, "profile").glob("**/*.xplane.pb"))  # for TensorBoard


@pytest.mark.slow
def test_a_run_that_stops_in_between_writes_what_it_has(data_dir, workdir):
    calls = iter([False] * 4 + [True])
    config = tiny.tiny_config(data_dir, **CHANGES)
    stopped = tiny.train(config, workdir, should_stop=lambda: next(calls), steps_per_call=1)
    assert stopped.step == 5
    assert len(traced(workdir)) == 1
    tiny.train(config, workdir)  # past the start of the window: no second trace
    assert len(traced(workdir)) == 1
