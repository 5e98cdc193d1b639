"""Tests of launch/slurm.sbatch, with fakes of Slurm's commands and Python."""

import contextlib
import os
import re
import signal

import fakes
import pytest
from fakes import LAUNCH, Fakes, wait_until

SCRIPT = LAUNCH / "slurm.sbatch"
ALLOCATED = "srun: job 7 has been allocated resources\n"
SHOW = ["show", "job", "--oneliner", "7"]


@pytest.fixture
def slurm(tmp_path):
    made = Fakes(
        tmp_path,
        srun=fakes.SRUN,
        scancel=fakes.SCANCEL,
        scontrol=fakes.SCONTROL,
        my_python=fakes.PYTHON,
    )
    made.env |= {"SLURM_JOB_ID": "7", "PYTHON": "my_python"}
    yield made
    made.end()


def test_sbatch_options():
    options = re.findall(r"^#SBATCH (.*)$", SCRIPT.read_text(), re.MULTILINE)
    # Without --cpus-per-task, a process with eight GPUs and decoders would get a single CPU.
    assert {
        *("--requeue", "--signal=B:TERM@120", "--open-mode=append", "--ntasks-per-node=1"),
        "--cpus-per-task=8",
    } <= set(options)
    # Slurm ignores #SBATCH lines below the first command.
    head = SCRIPT.read_text().split("set -euo pipefail")[0]
    assert head.count("\n#SBATCH ") == len(options)


def test_srun_starts_main_with_the_flags(slurm):
    done = slurm.run("bash", SCRIPT, "--config=c.py", "--config.train_for=2 epochs", "--quick")
    assert (done.returncode, done.stderr) == (0, ALLOCATED)
    assert slurm.calls("srun") == [
        ["--help"],
        [
            "--kill-on-bad-exit=0",
            *["my_python", "-u", "-m", "multipath_jax.main", "--config=c.py"],
            *["--config.train_for=2 epochs", "--quick", "--distributed=auto"],
        ],
    ]
    assert slurm.calls("scontrol") == []


def test_a_given_distributed_flag_is_kept(slurm):
    slurm.run("bash", SCRIPT, "--quick", "--distributed=off")
    assert slurm.calls("srun")[1][-2:] == ["--quick", "--distributed=off"]


def test_python_of_the_submit_directory(slurm, tmp_path):
    own = tmp_path / ".venv/bin/python"
    own.parent.mkdir(parents=True)
    own.symlink_to(tmp_path / "bin/my_python")
    del slurm.env["PYTHON"]
    slurm.run("bash", SCRIPT, "--quick", env={"SLURM_SUBMIT_DIR": str(tmp_path)})
    assert slurm.calls("srun")[1][1] == str(own)


@pytest.mark.parametrize(
    ("processes", "gpus", "own"), [("1", "4", "0,1,2,3"), ("4", "4", None), ("1", "1", "0")]
)
@pytest.mark.parametrize("bound", [False, True])
def test_gpus_of_a_process(slurm, processes, gpus, own, bound):
    """JAX uses the GPU with the local number of the process, so each process must see all GPUs."""
    env = {"SLURM_NTASKS_PER_NODE": processes, "SLURM_GPUS_ON_NODE": gpus}
    if bound:
        env["SLURM_GPUS_PER_TASK"] = str(int(gpus) // int(processes))
    assert slurm.run("bash", SCRIPT, "--quick", env=env).returncode == 0
    found = slurm.calls("runs")[0]["env"]
    assert found.get("JAX_LOCAL_DEVICE_IDS") == own
    assert found["CUDA_VISIBLE_DEVICES"] == ",".join(map(str, range(int(gpus))))


def test_cpus_of_a_process(slurm):
    slurm.run("bash", SCRIPT, "--quick", env={"SLURM_CPUS_PER_TASK": "6"})
    assert slurm.calls("runs")[0]["env"] == {"SRUN_CPUS_PER_TASK": "6"}


def start(slurm):
    """Starts a job, and waits until it trains."""
    job = slurm.start("bash", SCRIPT, "--config=c.py")
    assert "flags" in job.stdout.readline()
    return job


def end(job):
    """Waits for a job to end, and returns its exit status and output."""
    out, err = job.communicate(timeout=20)
    return job.returncode, out + err


def preempt(slurm, sent=signal.SIGTERM):
    """Starts a job, sends a signal only to the script, as Slurm does, and returns `end(job)`."""
    job = start(slurm)
    job.send_signal(sent)
    return end(job)


def pids_of_step(slurm):
    """The process ids of srun and of the task."""
    return map(int, wait_until(lambda: (slurm.folder / "step").read_text()).split())


def test_a_preempted_job_saves_and_is_requeued(slurm):
    slurm.tell(saving=0.5)
    status, out = preempt(slurm)
    assert status == 143
    # The task received SIGTERM, and the script waited for it.
    assert out.index("signal 15, saved") < out.index("requeueing the job")
    assert slurm.calls("scancel") == [["--signal=TERM", "7"]]
    assert slurm.calls("scontrol") == [SHOW, SHOW, ["requeue", "7"]]


def test_a_job_whose_task_received_sigterm_is_requeued(slurm):
    job = start(slurm)
    _, task = pids_of_step(slurm)
    os.kill(task, signal.SIGTERM)
    assert end(job)[0] == 143
    assert slurm.calls("scontrol")[-1] == ["requeue", "7"]


def test_sigint_saves_and_does_not_requeue(slurm):
    slurm.tell(saving=0.5)
    status, out = preempt(slurm, signal.SIGINT)
    assert status == 143
    assert "signal 15, saved" in out
    assert "requeueing the job" not in out
    assert slurm.calls("scontrol") == [SHOW]


def end_all(slurm, job):
    """Signals all processes, like slurmd on a plain scancel or a preemption without GraceTime."""
    slurm.tell(job_state="COMPLETING", saving=0.5)
    for pid in (job.pid, *pids_of_step(slurm)):
        with contextlib.suppress(ProcessLookupError):  # has ended after an earlier signal
            os.kill(pid, signal.SIGTERM)
    return end(job)


def test_a_plain_scancel_saves_from_slurm_26(slurm):
    """From Slurm 26.05 on, srun has an option to leave the signal to its tasks."""
    slurm.tell(slurm_26=True)
    status, out = end_all(slurm, start(slurm))
    assert "--ignore-signals=TERM" in slurm.calls("srun")[1]
    assert status == 143
    assert "signal 15, saved" in out
    assert "interrupted" not in out  # no process was signalled twice
    assert slurm.calls("scancel") == []
    assert ["requeue", "7"] not in slurm.calls("scontrol")


def test_a_plain_scancel_of_an_earlier_slurm_is_not_requeued(slurm):
    status, out = end_all(slurm, start(slurm))
    assert "forcing job termination" in out
    assert status != 0
    assert ["requeue", "7"] not in slurm.calls("scontrol")


def test_a_failed_run_is_not_requeued(slurm):
    done = slurm.run("bash", SCRIPT, "--fail_in=0")
    assert done.returncode == 7
    assert slurm.calls("scontrol") == []


@pytest.mark.parametrize(
    ("arguments", "env", "message"),
    [
        ([], {}, "flags are required"),
        (["--quick"], {"SLURM_JOB_ID": ""}, "SLURM_JOB_ID is not set"),
        (
            ["--quick"],
            {"SLURM_NTASKS_PER_NODE": "3", "SLURM_GPUS_ON_NODE": "8"},
            "3 processes on a node with 8 GPUs",
        ),
    ],
)
def test_usage_errors_are_one_line(slurm, arguments, env, message):
    done = slurm.run("bash", SCRIPT, *arguments, env=env)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert slurm.calls("srun") == []
