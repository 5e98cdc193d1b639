"""Tests of launch/local.sh, which starts N processes of main, with a fake Python."""

import signal
import time

import fakes
import pytest
from fakes import LAUNCH, Fakes, alive, wait_until

SCRIPT = LAUNCH / "local.sh"


@pytest.fixture
def programs(tmp_path):
    made = Fakes(tmp_path, my_python=fakes.PYTHON)
    made.env["PYTHON"] = "my_python"
    yield made
    made.end()


def flags_of(run):
    """The flags of main with which a process was started."""
    assert run["argv"][:3] == ["-u", "-m", "multipath_jax.main"]
    return run["argv"][3:]


def test_each_process_gets_the_flags_and_its_id(programs):
    done = programs.run(SCRIPT, "3", "--", "--quick", "--config.train_for=2 epochs", "--x='*'")
    assert (done.returncode, done.stderr) == (0, "")
    runs = sorted(programs.calls("runs"), key=lambda run: run["index"])
    address = flags_of(runs[0])[3]
    assert address.startswith("--distributed=127.0.0.1:")
    assert int(address.rpartition(":")[2]) > 1023
    for index, run in enumerate(runs):
        assert flags_of(run) == [
            "--quick",
            "--config.train_for=2 epochs",
            "--x='*'",
            address,
            "--num_processes=3",
            f"--process_id={index}",
        ]
        assert run["env"] == {}
    assert len(runs) == 3
    assert sorted(line[:10] for line in done.stdout.splitlines()) == [
        "[0] flags ",
        "[1] flags ",
        "[2] flags ",
    ]


def test_options_set_the_environment(programs):
    programs.run(SCRIPT, "--cpu", "--devices-per-process=4", "1", "--", "--quick")
    assert programs.calls("runs")[0]["env"] == {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "4",
    }


def test_each_process_gets_its_own_gpus(programs):
    programs.run(SCRIPT, "2", "--gpus-per-process=2", "--", "--quick")
    found = {run["index"]: run["env"]["JAX_LOCAL_DEVICE_IDS"] for run in programs.calls("runs")}
    assert found == {0: "0,1", 1: "2,3"}


NVIDIA_SMI = """#!{python}
for index in range(4):
    print(f"GPU {index}: NVIDIA H100 80GB HBM3 (UUID: GPU-{index})")
"""


@pytest.mark.parametrize(
    ("options", "env", "message"),
    [
        (["2"], {}, "each of 2 processes would use all 4 GPUs: pass --gpus-per-process=K or"),
        (
            ["3", "--gpus-per-process=2"],
            {},
            "3 processes with 2 GPUs each: only 4 GPUs are visible",
        ),
        (["2"], {"CUDA_VISIBLE_DEVICES": "0,3"}, "each of 2 processes would use all 2 GPUs"),
        (["2", "--gpus-per-process=2"], {}, None),
        (["1"], {}, None),
        (["2", "--cpu"], {}, None),
        (["2"], {"JAX_PLATFORMS": "cpu"}, None),
        (["2"], {"CUDA_VISIBLE_DEVICES": ""}, None),
    ],
)
def test_processes_do_not_share_gpus(programs, options, env, message):
    Fakes._write(programs.folder / "bin/nvidia-smi", NVIDIA_SMI)
    done = programs.run(SCRIPT, *options, "--", "--quick", env=env)
    if message is None:
        assert (done.returncode, done.stderr) == (0, "")
    else:
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert message in done.stderr
        assert programs.calls("runs") == []


def test_logs_writes_files_and_prints_only_process_0(programs, tmp_path):
    done = programs.run(SCRIPT, "--logs=logs/here", "2", "--", "--quick", cwd=tmp_path)
    folder = tmp_path / "logs/here"
    assert done.stdout.splitlines()[0] == f"local.sh: the logs of all processes are in {folder}"
    assert [line[:9] for line in done.stdout.splitlines()[1:]] == ["[0] flags"]
    for index in range(2):
        assert f"--process_id={index}" in (folder / f"process_{index}.log").read_text()


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_are_forwarded_to_all_processes(programs, sent, status):
    programs.tell(saving=0.3)
    process = programs.start(SCRIPT, "2")
    for _ in range(2):
        assert "flags" in process.stdout.readline()
    process.send_signal(sent)
    out, err = process.communicate(timeout=20)
    assert sorted(out.splitlines()) == [f"[{i}] signal {sent.value}, saved" for i in range(2)]
    assert (process.returncode, err) == (status, "")


def test_a_failed_process_stops_the_others(programs):
    done = programs.run(SCRIPT, "3", "--", "--fail_in=1")
    assert (done.returncode, done.stderr) == (7, "")
    output = sorted(line for line in done.stdout.splitlines() if "flags" not in line)
    assert output == ["[0] signal 15, saved", "[2] signal 15, saved"]


def test_processes_that_ignore_sigterm_are_killed(programs):
    start = time.monotonic()
    done = programs.run(SCRIPT, "--grace=1", "2", "--", "--fail_in=1", "--stubborn")
    assert done.returncode == 7
    assert 0.9 < time.monotonic() - start < 15


def test_no_process_is_left_after_sigterm(programs):
    process = programs.start(SCRIPT, "2")
    for _ in range(2):
        process.stdout.readline()
    children = programs.run("ps", "-o", "pid=", "--ppid", process.pid).stdout.split()
    assert len(children) == 4  # two processes, and for each the process that prints its lines
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    wait_until(lambda: not any(alive(int(child)) for child in children))


def test_help_is_the_header(programs):
    done = programs.run(SCRIPT, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("Trains with N processes on this machine")
    assert "--devices-per-process=K" in done.stdout
    assert "set -euo" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "N, the number of processes, is required"),
        (["0"], "N=0: must be a positive integer"),
        (["2x"], "N=2x: must be a positive integer"),
        (["-1"], "unknown argument '-1'"),
        (["2", "3"], "N is given twice: 2 and 3"),
        (["2", "--config=x"], "unknown argument '--config=x'"),
        (["2", "--devices-per-process=0"], "--devices-per-process=0: must be a positive"),
        (["2", "--gpus-per-process=two"], "--gpus-per-process=two: must be a positive"),
        (["2", "--grace=-1"], "--grace=-1: must be a positive integer"),
        (["2", "--cpu", "--gpus-per-process=1"], "are mutually exclusive"),
        (["2", "--", "--distributed=auto"], "are set by local.sh"),
        (["2", "--", "--quick", "--process_id=1"], "are set by local.sh"),
        (["2", "--logs=/proc/nowhere"], "cannot create the directory --logs=/proc/nowhere"),
    ],
)
def test_usage_errors_are_one_line(programs, arguments, message):
    done = programs.run(SCRIPT, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert programs.calls("runs") == []


def test_missing_python(programs):
    done = programs.run(SCRIPT, "2", env={"PYTHON": "no-such-python"})
    assert (done.returncode, done.stderr) == (
        2,
        "error: PYTHON=no-such-python: command not found\n",
    )
