"""Programs that stand in for gcloud, Slurm's and Python's, and record what they were called with.

Each is a file of Python in a folder that comes first on PATH; what it records and is told lies
in the folder that the variable STAND_IN names.
"""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import processes
import pytest

ROOT = Path(__file__).parent.parent.parent
LAUNCH = ROOT / "launch"

# All that the scripts may find beside the stand-ins: were the system's own folders on PATH, a test
# without a stand-in would reach a real gcloud, and with it somebody's project.
TOOLS = re.findall(
    r"\S+",
    """
    awk bash cat chmod cut date dirname env git grep gzip ln mkdir mkfifo mktemp mv nohup ps
    rm sed seq setsid sha256sum sh sleep sort tail tar uname
    """,
)

# Every stand-in begins so: `told(name)` is what a test wrote for it.
PRELUDE = """#!{python}
import json, os, pathlib, shutil, signal, subprocess, sys, time
HERE = pathlib.Path(os.environ["STAND_IN"])
argv = sys.argv[1:]

def record(name, entry):
    with open(HERE / f"{name}.jsonl", "a") as file:
        file.write(json.dumps(entry) + "\\n")

def told(name, default=None):
    path = HERE / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else default

"""

# The run: prints its flags, goes on until SIGTERM, SIGINT, or what its own flags say.
RUN = """
def train():
    index = next((int(a.split("=")[1]) for a in argv if a.startswith("--process_id=")), 0)
    names = ["JAX_NUM_CPU_DEVICES", "JAX_PLATFORMS", "JAX_LOCAL_DEVICE_IDS", "SRUN_CPUS_PER_TASK"]

    def stop(number, frame):
        time.sleep(told("saving", 0))
        os.write(1, f"signal {number}, saved\\n".encode())  # a handler may not print
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN if "--stubborn" in argv else stop)
    # Whoever reads of this run may send it a signal.
    record("runs", {"argv": argv, "cwd": os.getcwd(), "index": index,
                    "env": {name: os.environ[name] for name in names if name in os.environ}})
    print("flags", json.dumps(argv[argv.index("multipath_jax.main") + 1 :]), flush=True)
    if f"--fail_in={index}" in argv:
        all = next((int(a.split("=")[1]) for a in argv if a.startswith("--num_processes=")), 1)
        while len((HERE / "runs.jsonl").read_text().splitlines()) < all:
            time.sleep(0.05)
        sys.exit(7)
    while "--quick" not in argv:
        time.sleep(0.05)

"""

PYTHON = (
    PRELUDE
    + RUN
    + """
if argv[0] == "-c":
    exec(argv[1])
elif argv[:2] == ["-m", "venv"]:
    bin = pathlib.Path(argv[2]) / "bin"
    bin.mkdir(parents=True)
    shutil.copy(__file__, bin / "python")
    record("venvs", argv)
elif argv[:2] == ["-m", "pip"]:
    record("pip", {"argv": argv, "cwd": os.getcwd()})
    sys.exit(told("pip_status", 0))
else:
    train()
"""
)

GCLOUD = (
    PRELUDE
    + """
record("gcloud", argv)
failure = told("gcloud_fails")
if failure and failure["at"] in argv:
    print(failure["message"], file=sys.stderr)
    sys.exit(failure["status"])

def option(name, default=None):
    return next((a.split("=", 1)[1] for a in argv if a.startswith(f"--{name}=")), default)

def workers():
    which = option("worker", "0")
    return [w for w in sorted(HERE.glob("worker*")) if which in ("all", w.name[6:])]

kind, verb = argv[2:4]
if verb == "describe":
    states = told(kind, [])
    if not states:
        print(f"ERROR: (gcloud.{kind}.describe) NOT_FOUND: Resource was not found", file=sys.stderr)
        sys.exit(1)
    print(states[0])
    if len(states) > 1:  # the next answer
        (HERE / f"{kind}.json").write_text(json.dumps(states[1:]))
elif verb == "create":
    states = told("after_create", ["ACTIVE"])
    (HERE / "queued-resources.json").write_text(json.dumps(states))
    (HERE / "tpu-vm.json").write_text('["READY"]')
elif verb == "delete":
    (HERE / "queued-resources.json").unlink()
elif verb == "scp":
    *files, target = [a for a in argv[4:] if not a.startswith("--")]
    for worker in workers():
        for file in files:
            shutil.copy(file, worker / target.split(":")[1])
elif verb == "ssh":
    for worker in workers():
        env = {**os.environ, "HOME": str(worker)}
        done = subprocess.run(["bash", "-c", option("command")], cwd=worker, env=env)
        if done.returncode:
            sys.exit(done.returncode)
"""
)

# The task is a child; like the real one it turns a SIGTERM of its own into the task's death.
SRUN = (
    PRELUDE
    + """
record("srun", argv)
program = next(i for i, a in enumerate(argv) if not a.startswith("--"))
task = subprocess.Popen(argv[program:])
signal.signal(signal.SIGTERM, lambda *_: task.kill())
(HERE / "task").write_text(str(task.pid))
status = task.wait()
sys.exit(status if status >= 0 else 128 - status)
"""
)

SCANCEL = (
    PRELUDE
    + """
record("scancel", argv)
os.kill(int((HERE / "task").read_text()), signal.SIGTERM)
"""
)

SCONTROL = (
    PRELUDE
    + """
record("scontrol", argv)
if argv[0] == "show":
    print(f"JobId=7 JobName=multipath JobState={told('job_state', 'RUNNING')} Reason=None")
"""
)


class StandIns:
    """A folder of stand-ins, and an environment in which they come first."""

    def __init__(self, folder: Path, **programs: str):
        """Makes them; a program's name is its keyword with - for _ and . for two of them."""
        self.folder = folder
        self._earlier = processes.children()
        bin_folder = folder / "bin"
        bin_folder.mkdir()
        tools = folder / "tools"
        tools.mkdir()
        for name in TOOLS:
            if not (program := shutil.which(name)):
                pytest.skip(f"{name} is not installed")  # as in containers without procps
            (tools / name).symlink_to(program)
        for name, source in programs.items():
            self._write(bin_folder / name.replace("__", "."), source)
        # Nothing of the caller's TPU_, SLURM_ or JAX_ variables reaches the scripts.
        kept = {k: os.environ[k] for k in ("LANG", "LC_ALL", "TMPDIR") if k in os.environ}
        self.env = {
            **kept,
            "PATH": f"{bin_folder}:{tools}",
            "HOME": str(folder),
            "STAND_IN": str(folder),
        }

    @staticmethod
    def _write(path: Path, source: str) -> None:
        path.write_text(source.replace("{python}", sys.executable))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def tell(self, **answers) -> None:
        """What the stand-ins shall say or do; None takes it back."""
        for name, answer in answers.items():
            path = self.folder / f"{name.replace('__', '-')}.json"
            if answer is None:
                path.unlink(missing_ok=True)
            else:
                path.write_text(json.dumps(answer))

    def calls(self, name: str) -> list:
        """What was recorded so far."""
        path = self.folder / f"{name}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def forget(self) -> None:
        """Begins the records anew."""
        for path in self.folder.glob("*.jsonl"):
            path.unlink()

    def end(self) -> None:
        """Kills what is left of the programs that a test started."""
        processes.end(self._earlier)

    def start(self, *command, **options) -> subprocess.Popen:
        """Starts a program with the stand-ins, in a process group of its own."""
        pipe = subprocess.PIPE
        options = {"stdin": subprocess.DEVNULL, "stdout": pipe, "stderr": pipe, **options}
        env = {**self.env, **options.pop("env", {})}
        return subprocess.Popen(
            [shutil.which(str(command[0]), path=env["PATH"]), *map(str, command[1:])],
            env=env,
            text=True,
            start_new_session=True,
            **options,
        )

    def run(self, *command, input=None, **options) -> subprocess.CompletedProcess:
        """Runs a program to its end."""
        if input is not None:
            options["stdin"] = subprocess.PIPE
        with self.start(*command, **options) as process:
            out, err = process.communicate(input, timeout=60)
        return subprocess.CompletedProcess(command, process.returncode, out, err)


def wait_until(condition, seconds: float = 20):
    """The condition's first true value."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return value


def alive(pid: int) -> bool:
    """Whether a process is there and has not ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return fields[0] != "Z"
