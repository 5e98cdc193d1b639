"""Fake programs in place of gcloud, Slurm's commands and Python, which record their arguments.

Each fake is a Python script in a folder that comes first in PATH. Its records, and the answers that
a test sets for it, are files in the folder given by the environment variable FAKES_FOLDER.
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

# All programs that the scripts can find in addition to the fakes. The system's folders are not in
# PATH: otherwise, a test without a fake gcloud would call the real one, with the user's project.
TOOLS = re.findall(
    r"\S+",
    """
    awk bash cat chmod cut date dirname env flock git grep gzip ln mkdir mkfifo mktemp mv nohup ps
    rm sed seq setsid sha256sum sh sleep sort tail tar tee timeout touch uname wc
    """,
)

# The start of every fake. `told(name)` returns the answer that a test has set by `Fakes.tell`.
PRELUDE = """#!{python} -SE
import json, os, pathlib, shutil, signal, subprocess, sys, time
HERE = pathlib.Path(os.environ["FAKES_FOLDER"])
argv = sys.argv[1:]

def record(name, entry):
    with open(HERE / f"{name}.jsonl", "a") as file:
        file.write(json.dumps(entry) + "\\n")

def told(name, default=None):
    path = HERE / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else default

"""

# The fake training run: prints its flags, then runs until SIGTERM, SIGINT or `tell(finish=True)`,
# unless its flags request another end.
RUN = """
def train():
    index = next((int(a.split("=")[1]) for a in argv if a.startswith("--process_id=")), 0)
    names = ["JAX_NUM_CPU_DEVICES", "JAX_PLATFORMS", "JAX_LOCAL_DEVICE_IDS", "SRUN_CPUS_PER_TASK",
             "CUDA_VISIBLE_DEVICES"]

    def interrupted(number, frame):
        os.write(1, b"interrupted without a checkpoint\\n")
        os._exit(130)

    def stop(number, frame):
        for second in (signal.SIGTERM, signal.SIGINT):
            signal.signal(second, interrupted)  # as in main
        time.sleep(told("saving", 0))
        os.write(1, f"signal {number}, saved\\n".encode())  # print is not safe in a signal handler
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN if "--stubborn" in argv else stop)
    # A test may send a signal as soon as it has read this record.
    record("runs", {"argv": argv, "cwd": os.getcwd(), "index": index,
                    "env": {name: os.environ[name] for name in names if name in os.environ}})
    print("flags", json.dumps(argv[argv.index("multipath_jax.main") + 1 :]), flush=True)
    if f"--fail_in={index}" in argv:
        all = next((int(a.split("=")[1]) for a in argv if a.startswith("--num_processes=")), 1)
        while len((HERE / "runs.jsonl").read_text().splitlines()) < all:
            time.sleep(0.05)
        sys.exit(7)
    if ends := [int(a.split("=")[1]) for a in argv if a.startswith("--end_with=")]:
        sys.exit(ends[0])
    while "--quick" not in argv and not told("finish"):
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

# The flags of the gcloud commands that the scripts use: those of the GA track, and additional ones
# of the alpha track.
GCLOUD_FLAGS = {
    "queued-resources create": """
        accelerator-type runtime-version node-id node-count node-prefix async data-disk description
        guaranteed internal-ips labels metadata metadata-from-file network range reserved scopes
        service-account shielded-secure-boot spot subnetwork tags topology type
        valid-after-duration valid-after-time valid-until-duration valid-until-time
        reservation-host-folder reservation-host-organization reservation-host-project""",
    "queued-resources describe": "",
    "queued-resources delete": "async force",
    "tpu-vm describe": "",
    "tpu-vm ssh": """
        command dry-run force-key-file-overwrite internal-ip output-directory plain ssh-flag
        ssh-key-expiration ssh-key-expire-after ssh-key-file strict-host-key-checking worker""",
    "tpu-vm scp": """
        compress dry-run force-key-file-overwrite internal-ip plain recurse scp-flag
        ssh-key-expiration ssh-key-expire-after ssh-key-file strict-host-key-checking worker""",
}
GCLOUD_FLAGS_ALPHA = {
    "queued-resources create": "best-effort max-run-duration provisioning-model",
    "tpu-vm ssh": "batch-size tunnel-through-iap",
    "tpu-vm scp": "batch-size tunnel-through-iap",
}

# Messages that gcloud prints to standard error when commands succeed.
CHATTER = re.compile(
    r"^(WARNING: .*gcloud.*|Using ss?h?c?p? batch size .*|S(SH|CP): Attempting to connect .*"
    r"|(Create|Delete) request issued for: .*|##### Command execution on worker .*)\n",
    re.MULTILINE,
)

# The workers of a TPU are the folders worker0, ... in the folder of the node if that exists, and in
# HERE otherwise. A command runs on all workers at the same time. With `connection_breaks`, it is
# started a second time while the first one continues, as by gcloud after a lost connection.
GCLOUD = (
    PRELUDE
    + f"FLAGS = {GCLOUD_FLAGS!r}\nALPHA = {GCLOUD_FLAGS_ALPHA!r}\n"
    + """
record("gcloud", argv)
print("WARNING: this version of gcloud is older than the newest one", file=sys.stderr)
track = "alpha" if argv[0] == "alpha" else "ga"
words = argv[track == "alpha":]

def fail(message, status=1):
    print(f"ERROR: (gcloud.{'.'.join(words[:4])}) {message}", file=sys.stderr)
    sys.exit(status)

def option(name, default=None):
    return next((a.split("=", 1)[1] for a in words if a.startswith(f"--{name}=")), default)

def not_found(name):
    fail(f"NOT_FOUND: Resource 'projects/p/locations/z/{name}' was not found")

if words[:2] != ["compute", "tpus"]:
    fail("Invalid choice")
kind, verb = words[2:4]
known = {*FLAGS[f"{kind} {verb}"].split(), "zone", "project", "format", "quiet"}
if track == "alpha":
    known |= set(ALPHA.get(f"{kind} {verb}", "").split())
for word in words[4:]:
    if word.startswith("-") and word[2:].split("=")[0] not in known:
        fail(f"unrecognized arguments: {word}", 2)

failure = told("gcloud_fails")
if failure and failure["at"] in words and failure.get("times", 1):
    failure["times"] = failure.get("times", 0) - 1
    (HERE / "gcloud_fails.json").write_text(json.dumps(failure))
    print(failure["message"], file=sys.stderr)
    sys.exit(failure["status"])

QUEUED = "CREATING ACCEPTED WAITING_FOR_RESOURCES PROVISIONING ACTIVE"
QUEUED += " SUSPENDING SUSPENDED FAILED DELETING"
NODE = "CREATING READY RESTARTING REPAIRING STOPPING STOPPED PREEMPTED TERMINATED DELETING"

def workers(node):
    folder = HERE / node if (HERE / node).is_dir() else HERE
    which = option("worker", "0")
    found = sorted(folder.glob("worker*"))
    return [w for w in found if which in ("all", w.name[6:])]

def on_all(node, start):
    print(f"Using ssh batch size of 1. Attempting to SSH into 1 nodes", file=sys.stderr)
    running = []
    for worker in workers(node):
        print(f"SSH: Attempting to connect to worker {worker.name[6:]}...", file=sys.stderr)
        if told("connection_breaks"):
            start(worker)
        running.append(start(worker))
    statuses = [process.wait() for process in running]
    sys.exit(next((status for status in statuses if status), 0))

if verb == "describe":
    states = told(kind, [])
    if not states:
        not_found(words[4])
    state, message = states[0] if isinstance(states[0], list) else (states[0], "")
    assert state in {"queued-resources": QUEUED, "tpu-vm": NODE}[kind].split(), state
    if len(states) > 1:  # the next answer
        (HERE / f"{kind}.json").write_text(json.dumps(states[1:]))
    folder = HERE / words[4] if (HERE / words[4]).is_dir() else HERE
    fields = {"state.state": state, "state": state, "state.failedData.error.message": message,
              "networkEndpoints.len()": str(len(list(folder.glob("worker*"))))}
    wanted = option("format").removeprefix("value(").removesuffix(")").split(",")
    print("\\t".join(fields[name] for name in wanted))
elif verb == "create":
    print(f"Create request issued for: [{words[4]}]", file=sys.stderr)
    states = told("after_create", ["ACTIVE"])
    (HERE / "queued-resources.json").write_text(json.dumps(states))
    (HERE / "tpu-vm.json").write_text(json.dumps(told("nodes_after_create", ["READY"])))
elif verb == "delete":
    print(f"Delete request issued for: [{words[4]}]", file=sys.stderr)
    if not told(kind):
        not_found(words[4])
    for name in ("queued-resources.json", "tpu-vm.json"):
        (HERE / name).unlink(missing_ok=True)
elif verb == "scp":
    *files, target = [a for a in words[4:] if not a.startswith("--")]
    node, folder = target.split(":")
    copy = lambda worker: subprocess.Popen(["cat"], stdin=subprocess.DEVNULL)
    for worker in workers(node):
        for file in files:
            shutil.copy(file, worker / folder)
    on_all(node, copy)
elif verb == "ssh":
    if told(kind, ["READY"])[0] in ("PREEMPTED", "TERMINATED"):
        fail(f'This TPU has terminal state "{told(kind)[0]}", so it cannot be used anymore.')
    def start(worker):
        env = {**os.environ, "HOME": str(worker)}
        return subprocess.Popen(["bash", "-c", option("command")], cwd=worker, env=env)
    on_all(words[4], start)
"""
)

SSH_ADD = (
    PRELUDE
    + """
record("ssh_add", argv)
if not told("agent", True):
    print("Could not open a connection to your authentication agent.", file=sys.stderr)
    sys.exit(2)
print("3072 SHA256:abc google_compute_engine (RSA)")
"""
)

SUDO = (
    PRELUDE
    + """
record("sudo", argv)
sys.exit(1) if told("no_sudo") else os.execvp(argv[1], argv[1:])
"""
)

# The task is a child process. Like the real srun, the fake kills the task when it receives SIGTERM,
# unless it is a version with --ignore-signals, and binds GPUs with --gpus-per-task.
SRUN = (
    PRELUDE
    + """
record("srun", argv)
KNOWN = ["--kill-on-bad-exit", "--gpu-bind", *(["--ignore-signals"] if told("slurm_26") else [])]
if argv == ["--help"]:
    print("Usage: srun [OPTIONS...] executable [args...]", *KNOWN, sep="\\n")
    sys.exit()
print("srun: job 7 has been allocated resources", file=sys.stderr)
program = next(i for i, a in enumerate(argv) if not a.startswith("--"))
for word in argv[:program]:
    if word.split("=")[0] not in KNOWN:
        print(f"srun: unrecognized option '{word}'", file=sys.stderr)
        sys.exit(1)
if gpus := os.environ.get("SLURM_GPUS_ON_NODE"):
    if "--gpu-bind=none" not in argv:
        gpus = os.environ.get("SLURM_GPUS_PER_TASK", gpus)
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, range(int(gpus))))
task = subprocess.Popen(argv[program:])

def end(*_):
    print("srun: forcing job termination", file=sys.stderr)
    task.kill()

signal.signal(signal.SIGTERM, signal.SIG_IGN if "--ignore-signals=TERM" in argv else end)
(HERE / "step").write_text(f"{os.getpid()} {task.pid}")
status = task.wait()
sys.exit(status if status >= 0 else 128 - status)
"""
)

SCANCEL = (
    PRELUDE
    + """
record("scancel", argv)
if told("job_state", "RUNNING") != "RUNNING":
    print("scancel: error: Kill job error on job id 7: Job/step already completing or completed",
          file=sys.stderr)
    sys.exit(1)
os.kill(int((HERE / "step").read_text().split()[1]), signal.SIGTERM)
"""
)

SCONTROL = (
    PRELUDE
    + """
record("scontrol", argv)
if argv[0] == "show":
    print(f"JobId=7 JobName=multipath UserId=me(1000) Requeue=1 Restarts=0 BatchFlag=1 "
          f"JobState={told('job_state', 'RUNNING')} Reason=None Dependency=(null)")
"""
)


class Fakes:
    """A folder of fake programs, and an environment in which they come first in PATH."""

    def __init__(self, folder: Path, **programs: str):
        """Writes the fakes, whose sources are given by name; ``__`` in a name stands for a dot."""
        self.folder = folder
        self._earlier = processes.children()
        bin_folder = folder / "bin"
        bin_folder.mkdir()
        tools = folder / "tools"
        tools.mkdir()
        for name in TOOLS:
            if not (program := shutil.which(name)):
                pytest.skip(f"{name} is not installed")  # such as ps in containers without procps
            (tools / name).symlink_to(program)
        for name, source in programs.items():
            self._write(bin_folder / name.replace("__", "."), source)
        # The scripts do not get the TPU_, SLURM_ and JAX_ variables of the caller.
        kept = {k: os.environ[k] for k in ("LANG", "LC_ALL", "TMPDIR") if k in os.environ}
        self.env = {
            **kept,
            "PATH": f"{bin_folder}:{tools}",
            "HOME": str(folder),
            "FAKES_FOLDER": str(folder),
        }

    @staticmethod
    def _write(path: Path, source: str) -> None:
        path.write_text(source.replace("{python}", sys.executable))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def tell(self, **answers) -> None:
        """Sets answers of the fakes by name, with ``__`` for a hyphen; None removes an answer."""
        for name, answer in answers.items():
            path = self.folder / f"{name.replace('__', '-')}.json"
            if answer is None:
                path.unlink(missing_ok=True)
            else:
                path.write_text(json.dumps(answer))

    def calls(self, name: str) -> list:
        """Returns the entries that were recorded under a name so far."""
        path = self.folder / f"{name}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def forget(self) -> None:
        """Deletes all records."""
        for path in self.folder.glob("*.jsonl"):
            path.unlink()

    def end(self) -> None:
        """Kills the remaining processes of the test."""
        processes.end(self._earlier)

    def start(self, *command, **options) -> subprocess.Popen:
        """Starts a program in the environment of the fakes, in a new session and process group."""
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
        """Runs a program and waits for its end."""
        if input is not None:
            options["stdin"] = subprocess.PIPE
        with self.start(*command, **options) as process:
            out, err = process.communicate(input, timeout=60)
        return subprocess.CompletedProcess(command, process.returncode, out, err)


def wait_until(condition, seconds: float = 60):
    """Waits until a condition is true, and returns its value."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "timed out"
        time.sleep(0.05)
    return value


def alive(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return fields[0] != "Z"
