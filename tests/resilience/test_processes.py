"""Multi-process training on this machine, with Gloo, compared with one process."""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
from buckets import Buckets
from runs import ROOT, train
from workdirs import lines, saved

ONE_DEVICE = {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
RECIPE = {"train_for": "12 steps", "checkpoint_every": "4 steps", "log_every": "4 steps"}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def together(program):
    """A function that starts ``count`` processes of one run, with one device each."""

    def start(workdir, count, flags=(), **changes):
        if count == 1:
            return [program(workdir, environment=ONE_DEVICE, flags=flags, **RECIPE | changes)]
        address = f"127.0.0.1:{free_port()}"
        flags = [*flags, f"--distributed={address}", f"--num_processes={count}"]
        return [
            program(
                workdir,
                environment=ONE_DEVICE,
                flags=[*flags, f"--process_id={number}"],
                **RECIPE | changes,
            )
            for number in range(count)
        ]

    return start


def ended(runs):
    """Waits until all processes succeed; returns the output of the first."""
    ends = [run.end() for run in runs]
    assert [status for status, _ in ends] == [0] * len(runs), ends
    return ends[0][1]


def assert_close(workdir, other):
    """Asserts equality of the last checkpoints up to float32 rounding.

    Sums have another order with another number of devices: some errors of 6e-8 per step.
    """
    (step, found), (expected_step, expected) = saved(workdir), saved(other)
    assert step == expected_step == 12
    checked = 0
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-4, atol=1e-5, err_msg=key)
        checked += 1
    assert checked > 30


@pytest.fixture(scope="module")
def one(data_dir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("one") / "run"
    train(data_dir, workdir, **RECIPE)
    return workdir


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_several_processes_are_one_run(together, one, tmp_path, count):
    workdir = tmp_path / "grid[lr=0.3]"  # the name is also a glob pattern
    runs = together(workdir, count)
    others = [run.end() for run in runs[1:]]
    status, output = runs[0].end()
    assert status == 0, output
    assert_close(workdir, one)
    assert [line["step"] for line in lines(workdir)] == [4, 8, 12]
    for status, said in others:  # only the first prints and writes
        assert status == 0
        assert "step 4/12" not in said
        assert "wrote" not in said


@pytest.mark.slow
def test_several_processes_are_one_run_in_a_bucket(together, one, bucket, tmp_path):
    """Kills all processes in the middle and resumes; the first process writes, all read."""
    runs = together(f"{bucket}/run", 2, log_every="1 step", seconds_a_step=0.3)
    runs[0].wait_for("step 9/12")
    for run in runs:
        run.kill()
    assert [run.end()[0] for run in runs] == [-signal.SIGKILL] * 2
    said = ended(together(f"{bucket}/run", 2))
    assert re.search(r"resuming at step [48] of gs://bucket/run", said)
    Buckets(use_listings_cache=False).get(f"{bucket}/run/", f"{tmp_path}/run/", recursive=True)
    assert_close(tmp_path / "run", one)


@pytest.mark.slow
def test_several_processes_evaluate_what_one_has_trained(together, one):
    expected = f"\nerror {lines(one)[-1]['test/error']:.2f} %"
    first, second = (run.end() for run in together(one, 2, flags=["--mode=eval"]))
    assert (first[0], second[0]) == (0, 0)
    assert expected in first[1]
    assert expected not in second[1]  # only the first prints


@pytest.mark.slow
def test_another_number_of_processes_goes_on(together, one, tmp_path):
    """Two processes, then one, then two; a signal stops all but the last before the end."""
    workdir = tmp_path / "run"
    stops = []
    for count in (2, 1):
        runs = together(workdir, count, log_every="1 step", seconds_a_step=0.5)
        runs[0].wait_for(f"step {len(stops) * 4 + 2}/12")
        for run in runs:
            run.send_signal(signal.SIGTERM)
        ends = [run.end() for run in runs]
        assert [status for status, _ in ends] == [143] * count, ends
        stops.append(saved(workdir)[0])
    assert 2 <= stops[0] < stops[1] < 12
    assert f"resuming at step {stops[1]} of" in ended(together(workdir, 2))
    assert_close(workdir, one)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_at_one_step(together, tmp_path):
    runs = together(tmp_path / "run", 2, train_for="5000 steps", log_every="1 step")
    runs[0].wait_for("step 2/5000")
    runs[1].send_signal(signal.SIGTERM)  # not the process that writes
    ends = [run.end() for run in runs]
    assert [status for status, _ in ends] == [143, 143], ends
    assert "stopped at step" in ends[0][1]
    step, _ = saved(tmp_path / "run")
    assert f"stopped at step {step};" in ends[0][1]


@pytest.mark.slow
def test_local_sh_really_trains(data_dir, tmp_path):
    command = [ROOT / "launch" / "local.sh", "--cpu", "2", "--"]
    command += [f"--config={ROOT / 'configs' / 'digits.py'}", f"--workdir={tmp_path / 'run'}"]
    command += ["--config.model.name=ResNet8-2-CC", "--config.train_for=3 steps"]
    command += ["--config.schedule.boundaries=", f"--config.dataset.data_dir={data_dir}"]
    environment = os.environ | {"PYTHON": sys.executable} | ONE_DEVICE
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[0] step 3/3" in done.stdout
    assert pathlib.Path(tmp_path, "run", "metrics.jsonl").read_text().count("\n") == 1


@pytest.mark.slow
def test_each_process_decodes_its_own_part_of_a_batch(together, tmp_path):
    sys.path.insert(0, str(ROOT / "tests" / "data"))
    import photos

    photos.prepare(tmp_path, photos.rows(42), photos.rows(13, seed=1))
    changes = RECIPE | {"dataset.data_dir": tmp_path, "dataset.name": "photos"}
    changes |= {"dataset.size": 32, "dataset.crop": 24, "dataset.workers": 1, "batch_size": 8}
    changes |= {"eval_batch_size": 6, "dataset.ten_crop": True}
    for count in (1, 2):
        ended(together(tmp_path / f"by_{count}", count, **changes))
    assert_close(tmp_path / "by_2", tmp_path / "by_1")
    found, expected = (lines(tmp_path / f"by_{count}")[-1] for count in (2, 1))
    for name in ("test/error", "test/ten_crop_error"):
        assert found[name] == pytest.approx(expected[name])
