"""Tests of launch/tpu_vm.sh with a fake gcloud, whose workers are local folders."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import time

import fakes
import pytest
from fakes import LAUNCH, Fakes, alive, wait_until

LOCATION = ["--zone=us-west4-a", "--project=my-project"]
TPU = ["--name=my-tpu", *LOCATION]
QUEUED = ["compute", "tpus", "queued-resources"]
NODE = ["compute", "tpus", "tpu-vm"]
DESCRIBE = [
    *(*QUEUED, "describe", "my-tpu", *LOCATION),
    "--format=value(state.state,state.failedData.error.message)",
]
DESCRIBE_NODE = [*NODE, "describe", "my-tpu", *LOCATION, "--format=value(state)"]
DELETE = [*QUEUED, "delete", "my-tpu", *LOCATION, "--force", "--quiet"]
FLAGS = ["--config=configs/cifar.py:BaseCNN-2-CC", "--workdir=gs://my-bucket/cifar"]
WORKERS = 2


class Cloud(Fakes):
    """A fake TPU with two workers, and a repository with the scripts."""

    def __init__(self, folder):
        super().__init__(
            folder,
            gcloud=fakes.GCLOUD,
            python3__11=fakes.PYTHON,
            python3=fakes.PYTHON,
            sudo=fakes.SUDO,
            **{"ssh-add": fakes.SSH_ADD},
        )
        self.workers = [folder / f"worker{index}" for index in range(WORKERS)]
        self.repository = folder / "repository"
        shutil.copytree(LAUNCH, self.repository / "launch")
        (self.repository / "constraints.txt").write_text("jax==1.0\n")
        (self.repository / "pyproject.toml").write_text("[project]\n")
        self.git("init", "--quiet")
        self.commit()
        self.huge_pages = folder / "transparent_hugepage"
        self.new_machines()
        self.env |= {"TPU_POLL_SECONDS": "0", "TPU_HUGE_PAGES": str(self.huge_pages)}

    def git(self, *words):
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", *who, "-C", self.repository, *words], check=True)

    def commit(self):
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message=a commit")

    def new_machines(self):
        self.huge_pages.write_text("always [madvise] never\n")
        for worker in self.workers:
            shutil.rmtree(worker, ignore_errors=True)
            worker.mkdir()

    @property
    def script(self):
        return self.repository / "launch/tpu_vm.sh"

    def tpu(self, command, *options, **more):
        """Runs a command of the script for the TPU."""
        return self.run(self.script, command, *TPU, *options, **more)

    def ok(self, command, *options, **more):
        done = self.tpu(command, *options, **more)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def run(self, *command, **more):
        """Runs a program, and removes gcloud's usual messages from its standard error."""
        done = super().run(*command, **more)
        done.stderr = fakes.CHATTER.sub("", done.stderr)
        return done

    def gcloud_calls(self, *verbs):
        """The recorded calls of gcloud with one of the given verbs."""
        return [call for call in self.calls("gcloud") if set(verbs) & set(call[:5])]

    def file(self, index, name):
        return self.workers[index] / "multipath_jax_tpu" / name

    def log(self, index):
        return self.file(index, "run.log").read_text()

    def group(self, index):
        return int(self.file(index, "run.pid").read_text().split()[0])

    def runs_of(self):
        """The flags of all runs so far."""
        return [run["argv"][3:] for run in self.calls("runs")]

    def train(self, *flags):
        """Starts training, and waits until the run has started on every worker."""
        before = len(self.calls("runs"))
        output = self.ok("train", *(["--", *flags] if flags else []))
        wait_until(lambda: len(self.calls("runs")) == before + WORKERS)
        return output


@pytest.fixture
def cloud(tmp_path):
    made = Cloud(tmp_path)
    yield made
    made.end()


@pytest.fixture
def ready(cloud):
    """A TPU that is created and set up."""
    cloud.tell(**{"queued-resources": ["ACTIVE"], "tpu-vm": ["READY"]})
    cloud.ok("setup")
    cloud.forget()
    return cloud


def created(*more, type="v5litepod-8", runtime="v2-alpha-tpuv5-lite"):
    """The gcloud call that requests the TPU."""
    kind = [f"--accelerator-type={type}", f"--runtime-version={runtime}"]
    return [*QUEUED, "create", "my-tpu", "--node-id=my-tpu", *LOCATION, *kind, *more]


# --- create ---


@pytest.mark.parametrize(
    ("options", "call"),
    [
        ([], created("--spot")),
        (["--capacity=on-demand"], created()),
        (
            ["--capacity=spot", "--accelerator-type=v5litepod-16"],
            created("--spot", type="v5litepod-16"),
        ),
        (["--capacity=reserved"], created("--reserved")),
        (
            [
                "--valid-until-duration=6h",
                "--create-flag=--network=n",
                "--create-flag=--labels=a=b",
            ],
            created("--spot", "--network=n", "--labels=a=b", "--valid-until-duration=6h"),
        ),
        (["--accelerator-type=v6e-8"], created("--spot", type="v6e-8", runtime="v2-alpha-tpuv6e")),
        (["--accelerator-type=v5p-8"], created("--spot", type="v5p-8", runtime="v2-alpha-tpuv5")),
        (
            ["--accelerator-type=v4-32"],
            created("--spot", type="v4-32", runtime="tpu-ubuntu2204-base"),
        ),
        (
            ["--accelerator-type=tpu7x-8", "--runtime-version=an-image"],
            created("--spot", type="tpu7x-8", runtime="an-image"),
        ),
    ],
)
def test_create_requests_a_queued_resource(cloud, options, call):
    cloud.ok("create", *options)
    assert cloud.calls("gcloud") == [DESCRIBE, call]


def test_create_flags_from_a_variable(cloud):
    cloud.env |= {"TPU_CREATE_FLAGS": "--internal-ips --tags=a,b", "TPU_VALID_UNTIL": "1d"}
    cloud.ok("create", "--create-flag=--range=10.0.0.0/29")
    more = ["--internal-ips", "--tags=a,b", "--range=10.0.0.0/29", "--valid-until-duration=1d"]
    assert cloud.gcloud_calls("create") == [created("--spot", *more)]


def test_release_track_alpha(cloud):
    cloud.ok("create", "--release-track=alpha", "--create-flag=--max-run-duration=24h")
    assert {call[0] for call in cloud.calls("gcloud")} == {"alpha"}
    assert cloud.gcloud_calls("create") == [["alpha", *created("--spot", "--max-run-duration=24h")]]


@pytest.mark.parametrize("zone", ["us-west4-a", "europe-west4-b", "us-central1-ai1a"])
def test_valid_zones(cloud, zone):
    assert cloud.run(cloud.script, "create", "--name=a", f"--zone={zone}").returncode == 0


@pytest.mark.parametrize("state", ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACCEPTED"])
def test_create_keeps_a_pending_request(cloud, state):
    cloud.tell(**{"queued-resources": [state]})
    assert cloud.ok("create") == f"queued resource my-tpu already exists: {state}\n"
    assert cloud.calls("gcloud") == [DESCRIBE]


def test_create_keeps_a_ready_tpu(cloud):
    cloud.tell(**{"queued-resources": ["ACTIVE"], "tpu-vm": ["READY"]})
    assert cloud.ok("create") == "queued resource my-tpu already exists: ACTIVE\n"
    assert cloud.calls("gcloud") == [DESCRIBE, DESCRIBE_NODE]


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ("SUSPENDED", "SUSPENDED"),
        (["FAILED", "there is no quota for it"], "FAILED: there is no quota for it"),
    ],
)
def test_create_replaces_a_suspended_or_failed_request(cloud, state, reason):
    cloud.tell(**{"queued-resources": [state]})
    assert cloud.ok("create") == f"queued resource my-tpu is {reason}; requesting it again\n"
    assert cloud.calls("gcloud") == [DESCRIBE, DELETE, created("--spot")]


@pytest.mark.parametrize("node", ["PREEMPTED", "TERMINATED", None])
def test_create_replaces_a_preempted_tpu_vm(cloud, node):
    cloud.tell(**{"queued-resources": ["ACTIVE"], "tpu-vm": node and [node]})
    reason = f"ACTIVE: TPU VM my-tpu is {node or 'NOT_FOUND'}"
    assert cloud.ok("create") == f"queued resource my-tpu is {reason}; requesting it again\n"
    assert cloud.calls("gcloud") == [DESCRIBE, DESCRIBE_NODE, DELETE, created("--spot")]


def test_create_fails_for_a_stopped_tpu_vm(cloud):
    cloud.tell(**{"queued-resources": ["ACTIVE"], "tpu-vm": ["STOPPED"]})
    done = cloud.tpu("create", "--wait")
    assert done.stderr == "error: TPU VM my-tpu is STOPPED: start or delete it\n"
    assert cloud.gcloud_calls("create", "delete") == []


def test_create_fails_while_the_request_is_suspending(cloud):
    cloud.tell(**{"queued-resources": ["SUSPENDING"]})
    done = cloud.tpu("create")
    assert done.returncode == 1
    assert "is SUSPENDING" in done.stderr
    assert cloud.calls("gcloud") == [DESCRIBE]


def states_of(output):
    """The states that a wait has printed, without the times."""
    return [line.split(maxsplit=1)[1] for line in output.splitlines()]


def test_create_wait_waits_while_the_request_is_suspending(cloud):
    cloud.tell(**{"queued-resources": ["SUSPENDING", "SUSPENDING", "SUSPENDED"]})
    output = cloud.ok("create", "--wait")
    assert output.splitlines()[-2:] == [
        "queued resource my-tpu is SUSPENDED; requesting it again",
        output.splitlines()[-1],
    ]
    assert cloud.gcloud_calls("delete", "create") == [DELETE, created("--spot")]


def test_create_wait_waits_until_the_tpu_is_ready(cloud):
    cloud.tell(
        after_create=["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"],
        nodes_after_create=["CREATING", "READY"],
    )
    assert states_of(cloud.ok("create", "--wait")) == [
        "WAITING_FOR_RESOURCES",
        "PROVISIONING",
        "ACTIVE: TPU VM my-tpu is CREATING",
        "ACTIVE",
    ]
    assert cloud.calls("gcloud")[2:] == [DESCRIBE] * 2 + [DESCRIBE, DESCRIBE_NODE] * 2


def test_create_wait_ends_if_the_request_fails(cloud):
    cloud.tell(after_create=["PROVISIONING", ["FAILED", "no more capacity in the zone"]])
    done = cloud.tpu("create", "--wait")
    assert (done.returncode, done.stderr) == (
        1,
        "error: queued resource my-tpu is FAILED: no more capacity in the zone\n",
    )
    assert cloud.gcloud_calls("delete") == []


def test_create_wait_retries_failed_polls(cloud):
    cloud.tell(**{"queued-resources": ["PROVISIONING", "ACTIVE"], "tpu-vm": ["READY"]})
    process = cloud.start(cloud.script, "create", "--wait", *TPU, env={"TPU_POLL_SECONDS": "0.2"})
    assert "already exists: PROVISIONING" in process.stdout.readline()
    cloud.tell(gcloud_fails={"at": "describe", "message": "network", "status": 1, "times": 3})
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert states_of(out)[-1] == "ACTIVE"
    assert err.count("network") == 3


@pytest.mark.slow
def test_create_wait_fails_after_too_many_failed_polls(cloud):
    cloud.tell(**{"queued-resources": ["PROVISIONING"]})
    process = cloud.start(cloud.script, "create", "--wait", *TPU, env={"TPU_POLL_SECONDS": "0.1"})
    assert "already exists: PROVISIONING" in process.stdout.readline()
    cloud.tell(gcloud_fails={"at": "describe", "message": "network", "status": 1})
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "error: cannot read the state of my-tpu\n" in err
    assert "its TPU is billed" in err


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_create_wait_warns_of_the_cost(cloud, sent, status):
    cloud.tell(**{"queued-resources": ["PROVISIONING"]})
    process = cloud.start(cloud.script, "create", "--wait", *TPU, env={"TPU_POLL_SECONDS": "0.1"})
    for _ in range(2):
        process.stdout.readline()
    os.killpg(process.pid, sent)
    _, err = process.communicate(timeout=20)
    assert process.returncode == status
    last = err.splitlines()[-1]
    assert last.startswith("warning: queued resource my-tpu still exists; its TPU is billed")
    assert last.endswith("tpu_vm.sh delete --name=my-tpu --zone=us-west4-a --project=my-project")


@pytest.mark.parametrize("command", ["create", "status"])
def test_other_errors_of_gcloud_end_the_command(cloud, command):
    cloud.tell(gcloud_fails={"at": "describe", "message": "PERMISSION_DENIED", "status": 3})
    done = cloud.tpu(command)
    assert (done.returncode, done.stderr) == (3, "PERMISSION_DENIED\n")
    assert cloud.calls("gcloud") == [DESCRIBE]


# --- setup ---


def test_setup_copies_head_to_all_workers_and_installs(cloud):
    (cloud.repository / "constraints.txt").write_text("jax==9.9 # not committed\n")
    done = cloud.tpu("setup")
    assert done.returncode == 0
    assert done.stderr.startswith("warning: uncommitted changes are not copied")
    for index in range(WORKERS):
        assert cloud.file(index, "source/constraints.txt").read_text() == "jax==1.0\n"
        python = cloud.file(index, "venv/bin/python")
        assert python.exists()
    installs = cloud.calls("pip")
    for install in installs:
        assert install["argv"][:3] == ["-m", "pip", "install"]
        assert install["argv"][-3:] == ["-c", "constraints.txt", ".[tpu]"]
    folders = {str(cloud.file(index, "source").resolve()) for index in range(WORKERS)}
    assert {install["cwd"] for install in installs} == folders
    assert len(installs) == WORKERS


def test_second_setup_does_not_install_again(ready):
    output = ready.ok("setup")
    assert output.count("the packages are already installed") == WORKERS
    assert ready.calls("pip") == ready.calls("venvs") == []


def venvs(cloud, index):
    return sorted(path.name for path in cloud.file(index, "venvs").iterdir())


@pytest.mark.slow
def test_setup_keeps_the_venv_of_an_active_run(ready):
    ready.train(*FLAGS)
    earlier = venvs(ready, 0)
    (ready.repository / "constraints.txt").write_text("jax==2.0\n")
    ready.commit()
    ready.ok("setup")
    assert len(ready.calls("pip")) == WORKERS
    assert set(venvs(ready, 0)) > set(earlier)
    # Without an active run, the old one is removed.
    ready.ok("stop")
    ready.ok("setup")
    assert len(venvs(ready, 0)) == 1
    assert venvs(ready, 0) != earlier


@pytest.mark.slow
def test_setup_that_gcloud_starts_twice_installs_once(cloud):
    cloud.tell(connection_breaks=True)
    output = cloud.ok("setup")
    assert len(cloud.calls("pip")) == WORKERS
    assert (
        output.count("installed the packages of")
        == output.count("packages are already installed")
        == WORKERS
    )


def test_waiting_for_the_lock_times_out(ready):
    with subprocess.Popen(
        ["flock", ready.file(0, "lock"), "sh", "-c", "echo has it; sleep 60"],
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as other:
        try:
            other.stdout.readline()
            done = ready.tpu("setup", env={"TPU_LOCK_SECONDS": "0"})
        finally:
            os.killpg(other.pid, signal.SIGKILL)
    assert done.returncode == 1
    assert "another command holds the lock" in done.stderr


def test_setup_of_several_workers_requires_an_ssh_agent(cloud):
    cloud.tell(**{"tpu-vm": ["READY"]}, agent=False)
    done = cloud.tpu("setup")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("error: several workers require a key in an SSH agent")
    assert "ssh-add ~/.ssh/google_compute_engine" in done.stderr
    assert cloud.gcloud_calls("ssh", "scp") == []
    shutil.rmtree(cloud.workers[1])
    cloud.ok("setup")  # a single worker does not require an agent


@pytest.mark.slow
def test_setup_installs_again_if_the_requirements_change(ready):
    (ready.repository / "new.py").write_text("x = 1\n")
    ready.commit()
    ready.ok("setup")
    assert ready.file(1, "source/new.py").exists()
    assert ready.calls("pip") == []
    for name, text in [("constraints.txt", "jax==2.0\n"), ("pyproject.toml", "[project] # 2\n")]:
        (ready.repository / name).write_text(text)
        ready.commit()
        ready.ok("setup")
        assert len(ready.calls("pip")) == WORKERS
        ready.forget()


@pytest.mark.slow
def test_setup_after_a_failed_setup(cloud):
    cloud.tell(pip_status=1)
    assert cloud.tpu("setup").returncode != 0
    cloud.tell(pip_status=None)
    cloud.forget()
    cloud.ok("setup")
    assert len(cloud.calls("pip")) == WORKERS


def test_setup_from_a_repository(cloud):
    cloud.git("tag", "v1")
    (cloud.repository / "later.py").write_text("")
    cloud.commit()
    from_there = [f"--repo={cloud.repository}", "--ref=v1"]
    for _ in range(2):
        cloud.ok("setup", *from_there)
        assert (cloud.file(1, "source/constraints.txt")).exists()
        assert not cloud.file(1, "source/later.py").exists()
    assert len(cloud.calls("pip")) == WORKERS
    copied = [call for call in cloud.calls("gcloud") if call[3] == "scp"]
    assert copied[0][4:6] == [
        f"{cloud.repository}/launch/tpu_worker.sh",
        "my-tpu:multipath_jax_tpu/",
    ]


def test_setup_downloads_a_missing_python(cloud):
    fetched = """
if argv[:2] == ["python", "find"]:
    print(HERE / "bin/python3.11")
record("uv", argv)
"""
    uv = cloud.folder / "uv"
    Fakes._write(uv, fakes.PRELUDE + fetched)
    for index in range(WORKERS):
        place = cloud.file(index, "tools/bin/uv")
        place.parent.mkdir(parents=True)
        shutil.copy(uv, place)
    assert "python3.77" not in os.listdir(cloud.folder / "bin")
    cloud.ok("setup", "--python=3.77")
    assert sorted(cloud.calls("uv")) == [
        *[["python", "find", "--managed-python", "3.77"]] * WORKERS,
        *[["python", "install", "--quiet", "3.77"]] * WORKERS,
    ]
    assert re.fullmatch(r"uv==\d+\.\d+\.\d+", cloud.calls("pip")[0]["argv"][-1])
    assert cloud.file(0, "venv/.ready").exists()


# --- train ---


def test_train_starts_a_detached_run_on_all_workers(ready):
    flags = [*FLAGS, "--config.train_for=2 epochs", "--config.name=it's $HOME"]
    output = ready.train(*flags)
    assert output.count("no run to stop") == output.count("started, process group") == WORKERS
    assert ready.runs_of() == [[*flags, "--distributed=auto"]] * WORKERS
    for index in range(WORKERS):
        group = ready.group(index)
        assert os.getsid(group) == group  # a new session, independent of terminal and connection
        header = ready.log(index).splitlines()[0]
        assert re.match(r"=== \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ \S+: python -m multipath_jax", header)
        written = header.partition("multipath_jax.main ")[2]
        assert shlex.split(written) == [*flags, "--distributed=auto"]
    folders = {run["cwd"] for run in ready.calls("runs")}
    assert folders == {str(ready.file(index, "source").resolve()) for index in range(WORKERS)}


def test_second_start_with_the_same_flags_does_nothing(ready):
    ready.tell(connection_breaks=True)
    worker = ready.file(0, "tpu_worker.sh")
    twice = [ready.run("bash", worker, "start", *FLAGS) for _ in range(2)]
    assert [done.returncode for done in twice] == [0, 0]
    assert "already started, process group" in twice[1].stdout
    other = ready.run("bash", worker, "start", *FLAGS, "--config.seed=1")
    assert (other.returncode, other.stderr.count("\n")) == (1, 1)
    assert "another run is active" in other.stderr
    assert ready.group(0)
    wait_until(lambda: ready.calls("runs"))
    assert len(ready.calls("runs")) == 1


def test_train_that_gcloud_starts_twice_starts_one_run(ready):
    ready.tell(connection_breaks=True)
    ready.train(*FLAGS)
    assert ready.runs_of() == [[*FLAGS, "--distributed=auto"]] * WORKERS


@pytest.mark.slow
def test_train_enables_huge_pages(ready):
    ready.train(*FLAGS)
    assert ready.huge_pages.read_text() == "always\n"
    assert ready.calls("sudo")[0] == ["-n", "tee", str(ready.huge_pages)]
    ready.huge_pages.write_text("[always] madvise never\n")
    ready.forget()
    ready.train(*FLAGS)
    assert ready.calls("sudo") == []


def test_train_without_permission_for_huge_pages(ready):
    ready.tell(no_sudo=True)
    done = ready.tpu("train", "--", *FLAGS)
    assert done.returncode == 0
    assert done.stderr.count("cannot enable transparent huge pages") == WORKERS


def test_stop_ends_the_run_with_a_checkpoint(ready):
    ready.train(*FLAGS)
    assert ready.ok("stop").count("stopped the previous run") == WORKERS
    assert all("signal 15, saved" in ready.log(index) for index in range(WORKERS))


def test_outcome(ready):
    assert ready.ok("outcome") == "none\n"
    ready.train(*FLAGS)
    assert ready.ok("outcome") == "running\n"
    ready.ok("stop")
    assert ready.ok("outcome") == "ended 143\n"
    ready.train(*FLAGS, "--quick")
    wait_until(lambda: ready.ok("outcome") == "ended 0\n")


def test_ssh_flags(ready):
    ready.ok("setup", "--ssh-flag=--internal-ip", "--ssh-flag=--ssh-flag=-p 22")
    for call in ready.gcloud_calls("ssh"):
        assert call[-3:-1] == ["--internal-ip", "--ssh-flag=-p 22"]
    assert [call[-2:] for call in ready.gcloud_calls("scp")] == [
        ["--internal-ip", "--scp-flag=-p 22"]
    ]


@pytest.mark.slow
def test_several_slices(cloud):
    for index in range(2):
        (cloud.folder / f"my-tpu-{index}").mkdir()
        cloud.workers[index].rename(cloud.folder / f"my-tpu-{index}/worker0")
    slices = "--node-count=2"
    cloud.ok("create", slices, "--wait")
    call = cloud.gcloud_calls("create")[0]
    assert "--node-count=2" in call
    assert not any(word.startswith("--node-id") for word in call)
    cloud.ok("setup", slices)
    assert len(cloud.calls("pip")) == 2
    cloud.ok("train", slices, "--", *FLAGS)
    wait_until(lambda: len(cloud.calls("runs")) == 2)
    assert sorted({call[4] for call in cloud.gcloud_calls("ssh")}) == ["my-tpu-0", "my-tpu-1"]
    assert cloud.ok("status", slices).count("running, process group") == 2
    # If one slice is preempted, the run cannot continue on the others.
    cloud.tell(**{"tpu-vm": ["READY", "PREEMPTED"]})
    assert "TPU VM my-tpu-1 is PREEMPTED" in cloud.ok("status", slices)
    cloud.tell(agent=False, **{"tpu-vm": ["READY"]})
    assert "require a key in an SSH agent" in cloud.tpu("setup", slices).stderr


@pytest.mark.slow
def test_train_keeps_a_given_distributed_flag(ready):
    ready.train(*FLAGS, "--distributed=off")
    assert ready.runs_of() == [[*FLAGS, "--distributed=off"]] * WORKERS


def test_train_ends_the_previous_run_on_all_workers_first(ready):
    ready.train(*FLAGS)
    earlier = [ready.group(index) for index in range(WORKERS)]
    output = ready.train(*FLAGS, "--config.seed=1")
    assert [line.split(": ")[1].split(",")[0] for line in output.splitlines()] == [  # in this order
        *["stopped the previous run"] * WORKERS,
        *["started"] * WORKERS,
    ]
    assert not any(alive(group) for group in earlier)
    for index in range(WORKERS):
        assert alive(ready.group(index))
        log = ready.log(index)
        assert log.count("=== ") == 3  # two headers, and the last line of the first run
        assert (
            log.index("saved") < log.index("ended with status 143") < log.index("--config.seed=1")
        )


def test_a_run_that_does_not_stop_is_killed(ready):
    ready.train(*FLAGS, "--stubborn")
    earlier = [ready.group(index) for index in range(WORKERS)]
    output = ready.ok("train", "--grace=0", "--", *FLAGS)
    assert output.count("killed the previous run") == WORKERS
    assert not any(alive(group) for group in earlier)


@pytest.mark.slow
def test_a_reused_process_id_is_not_killed(ready):
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as other:
        try:
            ready.file(0, "run.pid").write_text(f"{other.pid} 1\n")
            assert ready.train(*FLAGS).count("no run to stop") == WORKERS
            assert other.poll() is None
        finally:
            other.kill()


def test_status_after_the_end_of_a_run(ready):
    ready.train(*FLAGS, "--quick")
    wait_until(lambda: "ended with status 0" in ready.log(0))
    assert ready.ok("status").count("no run; last line: === ") >= 1


def test_train_without_flags_uses_the_recorded_flags(ready):
    flags = [*FLAGS, "--config.train_for=2 epochs", "--config.name=it's"]
    ready.train(*flags)
    ready.end()
    ready.new_machines()  # with empty folders
    ready.tell(**{"queued-resources": ["SUSPENDED"], "tpu-vm": None})
    assert "to resume the run: keep, or create --wait" in ready.ok("status")
    ready.ok("create", "--wait")
    ready.ok("setup")
    ready.forget()
    assert "using the recorded flags: --config=configs" in ready.train()
    assert ready.runs_of() == [[*flags, "--distributed=auto"]] * WORKERS


@pytest.mark.slow
def test_flags_are_recorded_per_tpu(ready):
    ready.train(*FLAGS)
    done = ready.run(ready.script, "train", "--name=other", *LOCATION)
    assert done.returncode == 2
    assert "no flags are recorded for other" in done.stderr


def test_train_before_setup_fails(cloud):
    done = cloud.tpu("train", "--", *FLAGS)
    assert done.returncode == 127
    cloud.ok("setup")
    cloud.file(1, "venv").unlink()
    done = cloud.tpu("train", "--", *FLAGS)
    assert done.returncode == 1
    assert "setup is required first" in done.stderr


def test_train_warns_of_a_workdir_on_the_tpu_vm(ready):
    done = ready.tpu("train", "--", FLAGS[0], "--workdir=runs/here")
    assert done.returncode == 0
    assert done.stderr.startswith(
        "warning: --workdir=runs/here is a separate folder on each worker"
    )


# --- logs, status, delete ---


def test_logs(ready):
    for index in range(WORKERS):
        text = "".join(f"worker {index} line {n}\n" for n in range(300))
        ready.file(index, "run.log").write_text(text)
    lines = ready.ok("logs").splitlines()
    assert (len(lines), lines[-1]) == (200, "worker 0 line 299")
    assert ready.ok("logs", "--worker=1", "--lines=2").splitlines() == [
        "worker 1 line 298",
        "worker 1 line 299",
    ]


def test_logs_follow(ready):
    log = ready.file(0, "run.log")
    log.write_text("first\n")
    process = ready.start(ready.script, "logs", *TPU, "-f")
    try:
        assert process.stdout.readline() == "first\n"
        with log.open("a") as file:
            file.write("second\n")
        assert process.stdout.readline() == "second\n"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.slow
def test_logs_before_a_run(ready):
    done = ready.tpu("logs")
    assert done.returncode == 1
    assert "there is no log yet" in done.stderr


def test_status_of_an_active_run(ready):
    ready.train(*FLAGS)
    wait_until(lambda: all("flags" in ready.log(index) for index in range(WORKERS)))
    first, *lines = ready.ok("status").splitlines()
    assert first == "queued resource my-tpu: ACTIVE"
    assert len(lines) == WORKERS
    for index in range(WORKERS):
        state = f": running, process group {ready.group(index)}; last line: flags ["
        assert sum(state in line for line in lines) == 1


def test_status_without_a_queued_resource(cloud):
    assert cloud.ok("status") == "queued resource my-tpu: NOT_FOUND\n"
    assert cloud.calls("gcloud") == [DESCRIBE]


def test_status_prints_the_error_of_the_request(cloud):
    cloud.tell(**{"queued-resources": [["FAILED", "no quota"]]})
    assert cloud.ok("status").startswith("queued resource my-tpu: FAILED, no quota\n")


@pytest.mark.parametrize("answer", ["y\n", "yes\n"])
def test_delete_after_confirmation(cloud, answer):
    cloud.tell(**{"queued-resources": ["ACTIVE"]})
    assert cloud.tpu("delete", input=answer).returncode == 0
    assert cloud.calls("gcloud") == [DELETE]


@pytest.mark.parametrize("answer", ["n\n", "\n", "", "why\n"])
def test_delete_without_confirmation_fails(cloud, answer):
    done = cloud.tpu("delete", input=answer)
    assert done.returncode == 1
    assert "nothing was deleted" in done.stderr
    assert cloud.calls("gcloud") == []


def test_delete_yes(cloud):
    cloud.tell(**{"queued-resources": ["ACTIVE"]})
    cloud.ok("delete", "--yes")
    assert cloud.calls("gcloud") == [DELETE]


# --- keep ---


def keep(cloud, *flags, hours="1", retries=1):
    """Starts the command keep, with a polling interval that limits the number of polls."""
    env = {"TPU_POLL_SECONDS": "0.1"}
    words = [f"--max-hours={hours}", f"--retries={retries}", "--", *FLAGS, *flags]
    return cloud.start(cloud.script, "keep", *TPU, *words, env=env)


def wait_for_keep(process):
    """Waits for keep; returns its status, output and errors, without gcloud's usual messages."""
    out, err = process.communicate(timeout=60)
    return process.returncode, out, fakes.CHATTER.sub("", err)


def test_keep_creates_trains_and_deletes(cloud):
    status, out, err = wait_for_keep(keep(cloud, "--quick"))
    assert (status, err) == (0, "")
    assert out.splitlines()[-1] == "keep: the run has completed"
    assert cloud.runs_of() == [[*FLAGS, "--quick", "--distributed=auto"]] * WORKERS
    assert [call[:4] for call in cloud.gcloud_calls("create", "delete")] == [
        [*QUEUED, "create"],
        [*QUEUED, "delete"],
    ]


@pytest.mark.slow
def test_keep_resumes_after_a_preemption(cloud):
    process = keep(cloud)
    wait_until(lambda: len(cloud.calls("runs")) == WORKERS)
    wait_until(lambda: cloud.gcloud_calls("ssh")[-1][-1].endswith("outcome"))
    cloud.tell(**{"tpu-vm": ["PREEMPTED"]})
    for index in range(WORKERS):
        os.killpg(cloud.group(index), signal.SIGKILL)
    cloud.new_machines()
    wait_until(lambda: len(cloud.calls("runs")) == 2 * WORKERS)
    cloud.tell(finish=True)
    status, out, err = wait_for_keep(process)
    assert status == 0
    assert "ACTIVE: TPU VM my-tpu is PREEMPTED; requesting it again" in out
    assert len(cloud.gcloud_calls("create")) == len(cloud.gcloud_calls("delete")) == 2
    assert cloud.runs_of() == [[*FLAGS, "--distributed=auto"]] * 2 * WORKERS
    assert "billed" not in err


@pytest.mark.slow
def test_keep_restarts_a_run_that_received_sigterm(cloud):
    process = keep(cloud, retries=0)
    wait_until(lambda: len(cloud.calls("runs")) == WORKERS)
    for index in range(WORKERS):
        cloud.run("bash", cloud.file(index, "tpu_worker.sh"), "stop", "5")
    wait_until(lambda: len(cloud.calls("runs")) == 2 * WORKERS)
    cloud.tell(finish=True)
    assert wait_for_keep(process)[0] == 0


@pytest.mark.slow
def test_keep_limits_the_retries_of_a_failing_run(cloud):
    status, out, err = wait_for_keep(keep(cloud, "--end_with=7"))
    assert status == 7
    assert len(cloud.calls("runs")) == 2 * WORKERS
    assert "keep: failed with status 7" in out
    assert "ended with status 7" in out.splitlines()[-1]
    assert len(cloud.gcloud_calls("create")) == len(cloud.gcloud_calls("delete")) == 1
    assert "billed" not in err


def test_keep_limits_the_retries_of_a_failing_request(cloud):
    cloud.tell(after_create=[["FAILED", "no quota in this zone"]])
    status, out, _ = wait_for_keep(keep(cloud))
    assert status == 1
    assert "keep: failed with status 1: no quota in this zone" in out
    assert len(cloud.gcloud_calls("create")) == len(cloud.gcloud_calls("delete")) == 2
    assert cloud.gcloud_calls("ssh") == []


@pytest.mark.slow  # enough time to start the run on a slow machine
def test_keep_stops_the_run_and_deletes_at_max_hours(cloud):
    status, out, _ = wait_for_keep(keep(cloud, hours="0.01"))
    assert status == 1
    assert "keep: reached --max-hours=0.01" in out
    assert len(cloud.gcloud_calls("create")) == len(cloud.gcloud_calls("delete")) == 1
    assert len(cloud.calls("runs")) == WORKERS
    assert all("signal 15, saved" in cloud.log(index) for index in range(WORKERS))


@pytest.mark.slow
def test_interrupted_keep_warns_of_the_cost(cloud):
    process = keep(cloud)
    wait_until(lambda: len(cloud.calls("runs")) == WORKERS)
    wait_until(lambda: cloud.gcloud_calls("ssh")[-1][-1].endswith("outcome"))
    os.killpg(process.pid, signal.SIGINT)
    status, _, err = wait_for_keep(process)
    assert status == 130
    assert err.splitlines()[-1].startswith("warning: queued resource my-tpu still exists")
    assert cloud.gcloud_calls("delete") == []
    assert all(alive(cloud.group(index)) for index in range(WORKERS))


@pytest.mark.slow
def test_max_hours_ends_a_command_that_hangs(cloud):
    (cloud.folder / "bin/ssh-add").write_text("#!/bin/sh\nexec sleep 60\n")
    began = time.monotonic()
    status, out, _ = wait_for_keep(keep(cloud, hours="0.0006"))
    assert status == 1
    assert "reached --max-hours" in out
    assert len(cloud.gcloud_calls("delete")) == 1
    assert time.monotonic() - began < 50


# --- dry runs, variables, bad input ---


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["create"], marks=pytest.mark.slow),
        ["create", "--wait", "--capacity=on-demand"],
        ["create", "--node-count=2", "--release-track=alpha"],
        pytest.param(["setup"], marks=pytest.mark.slow),
        ["setup", "--repo=https://example.com/a.git", "--ref=v1"],
        ["train", "--", *FLAGS, "--config.train_for=2 epochs", "--config.name=it's"],
        pytest.param(["logs", "--worker=1", "--lines=5"], marks=pytest.mark.slow),
        pytest.param(["stop", "--ssh-flag=--internal-ip"], marks=pytest.mark.slow),
        pytest.param(["outcome"], marks=pytest.mark.slow),
        pytest.param(["status"], marks=pytest.mark.slow),
        ["delete", "--yes"],
    ],
    ids=" ".join,
)
def test_dry_run_prints_the_commands_of_a_real_run(cloud, words):
    command, *options = words
    if command in ("train", "logs", "stop", "outcome", "status"):
        cloud.ok("create")
        cloud.ok("setup")
        cloud.file(1, "run.log").write_text("a line\n")
        cloud.forget()
    if command == "delete":
        cloud.tell(**{"queued-resources": ["ACTIVE"]})
    before = sorted(path for path in cloud.folder.rglob("*") if path.name != "gcloud.jsonl")
    output = cloud.ok(command, "--dry-run", *options)
    assert sorted(path for path in cloud.folder.rglob("*")) == before
    assert cloud.calls("gcloud") == []
    printed = [shlex.split(line) for line in output.splitlines() if not line.startswith("#")]
    if "--repo=https://example.com/a.git" in options:  # the repository does not exist
        cloud.run(
            "git", "config", "--global", "url.file:///nowhere.insteadOf", "https://example.com"
        )
        assert cloud.tpu(command, *options).returncode != 0
    else:
        cloud.ok(command, *options)
    run = [["gcloud", *call] for call in cloud.calls("gcloud")]
    assert [call for call in printed if call[0] == "gcloud"] == run
    assert {call[0] for call in printed} <= {"gcloud", "git", "mkdir", "ssh-add"}


def test_no_real_program_replaces_a_missing_fake(cloud):
    for name in ("gcloud", "python3.11", "srun", "scancel", "scontrol", "ssh", "curl"):
        found = shutil.which(name, path=cloud.env["PATH"])
        assert found is None or found.startswith(f"{cloud.folder}/bin/")


def test_dry_run_requires_neither_gcloud_nor_confirmation(cloud):
    (cloud.folder / "bin/gcloud").unlink()
    assert shutil.which("gcloud", path=cloud.env["PATH"]) is None
    assert cloud.ok("delete", "--dry-run") == f"gcloud {shlex.join(DELETE)}\n"
    done = cloud.tpu("delete", "--yes")
    assert (done.returncode, done.stderr) == (2, "error: gcloud is not installed\n")


def test_environment_variables_set_options(cloud):
    cloud.env |= {
        "TPU_NAME": "my-tpu",
        "TPU_ZONE": "us-west4-a",
        "TPU_PROJECT": "my-project",
        "TPU_TYPE": "v6e-8",
        "TPU_RUNTIME": "an-image",
        "TPU_CAPACITY": "on-demand",
    }
    cloud.run(cloud.script, "create")
    cloud.run(cloud.script, "create", "--name=b", "--accelerator-type=v6e-1", "--dry-run")
    assert cloud.calls("gcloud") == [DESCRIBE, created(type="v6e-8", runtime="an-image")]
    done = cloud.run(cloud.script, "create", "--name=b", "--accelerator-type=v6e-1", "--dry-run")
    assert "create b --node-id=b" in done.stdout  # an option overrides its variable
    assert "--accelerator-type=v6e-1 " in done.stdout


def test_no_project_flag_without_a_project(cloud):
    cloud.run(cloud.script, "delete", "--yes", "--name=my-tpu", "--zone=us-west4-a")
    assert cloud.calls("gcloud")[0][3:] == ["delete", "my-tpu", LOCATION[0], "--force", "--quiet"]


def test_help_has_every_option_and_variable(cloud):
    done = cloud.run(cloud.script, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    files = [cloud.script, *(LAUNCH / "tpu").iterdir()]
    source = "".join(path.read_text() for path in files)
    parser = source[source.index("parse_options() {") : source.index("check_options() {")]
    options = set(re.findall(r"^ +(-[-a-z]+)(?:=\*)?(?: \| -h)?\)", parser, re.MULTILINE))
    variables = set(re.findall(r"\$\{(TPU_[A-Z_]+)", source)) - {"TPU_POLL_SECONDS"}  # for tests
    listed = re.findall(r"^(-[-a-z]+)", done.stdout, re.MULTILINE)
    assert set(listed) == options - {"--"}
    assert len(options) > 15
    assert variables == set(re.findall(r"TPU_[A-Z_]+", done.stdout))
    assert cloud.run(cloud.script, "train", "--help").stdout == done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "a command is required"),
        (["start"], "unknown command 'start'"),
        (["create"], "--name=NAME or TPU_NAME is required"),
        (["create", "--name=a"], "--zone=ZONE or TPU_ZONE is required"),
        (["create", "--name=A_b", LOCATION[0]], "invalid --name=A_b: must start"),
        (["create", "--name=a;b", LOCATION[0]], "invalid --name=a;b: must start"),
        (["create", "--name=a", "--zone=europe"], "invalid --zone=europe: must be a zone"),
        (["create", *TPU, "--project=my project"], "must be a project ID"),
        (["create", *TPU, "--accelerator-type=v5e"], "must be a type such as v5litepod-16"),
        (["create", *TPU, "--accelerator-type=v5e-8"], "v5e-8: use v5litepod-8"),
        (["create", *TPU, "--accelerator-type=v9x-8"], "--runtime-version=NAME is required"),
        (["create", *TPU, "--valid-until-duration=soon"], "soon: must be a duration"),
        (
            ["create", *TPU, "--create-flag=network=a"],
            "--create-flag=network=a: must have the form --create-flag=--FLAG",
        ),
        (
            ["create", *TPU, "--ssh-flag=-vvv"],
            "--ssh-flag=-vvv: must have the form --ssh-flag=--FLAG",
        ),
        (["create", *TPU, "--release-track=beta"], "--release-track=beta: must be ga or alpha"),
        (["create", *TPU, "--node-count=0"], "--node-count=0: must be a positive integer"),
        (
            ["train", *TPU, "--create-flag=--network=a"],
            "is not an option of train, but of create, keep",
        ),
        (["keep", *TPU, "--", *FLAGS], "--max-hours=HOURS or TPU_MAX_HOURS is required"),
        (["keep", *TPU, "--max-hours=soon", "--", *FLAGS], "invalid --max-hours=soon"),
        (["keep", *TPU, "--max-hours=1", "--retries=x", "--", *FLAGS], "--retries=x: must be"),
        (["keep", *TPU, "--max-hours=1"], "no flags are recorded for my-tpu"),
        (
            ["keep", *TPU, "--max-hours=1", "--", FLAGS[0], "--workdir=here"],
            "keep requires --workdir=gs://",
        ),
        (["create", *TPU, "--runtime-version=A b"], "must be a version such as"),
        (["create", *TPU, "--capacity=free"], "must be spot, on-demand or reserved"),
        (["create", *TPU, "--zone", "us-west4-a"], "unknown argument '--zone'"),
        (["create", *TPU, "--spots"], "unknown argument '--spots'"),
        (["create", *TPU, "there"], "unknown argument 'there'"),
        (["create", *TPU, "--yes"], "--yes is not an option of create, but of delete"),
        (["delete", *TPU, "--capacity=spot"], "--capacity is not an option of delete, but"),
        (["status", *TPU, "-f"], "-f is not an option of status, but of logs"),
        (
            ["train", *TPU, "--worker=0", "--", *FLAGS],
            "--worker is not an option of train, but of logs",
        ),
        (["setup", *TPU, "--python=3.10"], "--python=3.10: must be 3.N, 3.11 or newer"),
        (["setup", *TPU, "--python=latest"], "--python=latest: must be 3.N"),
        (["setup", *TPU, "--repo=https://a/b.git"], "--repo requires --ref"),
        (["setup", *TPU, "--ref=v1"], "--ref requires --repo"),
        (
            ["setup", *TPU, "--repo=https://a/b.git", "--ref=--force"],
            "must not begin with a hyphen",
        ),
        (["setup", *TPU, "--", *FLAGS], "-- is not an option of setup, but of train, keep"),
        (["train", *TPU], "no flags are recorded for my-tpu"),
        (["train", *TPU, "--"], "flags are required after --"),
        (["train", *TPU, "--grace=soon", "--", *FLAGS], "--grace=soon: must be"),
        (["train", *TPU, "--", FLAGS[1]], "--config=CONFIG is required"),
        (["train", *TPU, "--", FLAGS[0]], "--workdir=gs://BUCKET/FOLDER is required"),
        (["train", *TPU, *FLAGS], "unknown argument '--config=configs/cifar.py:BaseCNN-2-CC'"),
        (["logs", *TPU, "--worker=all"], "--worker=all: must be"),
        (["logs", *TPU, "--lines=-5"], "--lines=-5: must be"),
    ],
)
def test_usage_errors_are_one_line(cloud, words, message):
    done = cloud.run(cloud.script, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert cloud.calls("gcloud") == []
    assert not (cloud.folder / ".local").exists()
