"""launch/tpu_vm.sh against a stand-in gcloud, whose workers are folders of this machine."""

import os
import re
import shlex
import shutil
import signal
import subprocess

import pytest
import stand_ins
from stand_ins import LAUNCH, StandIns, alive, wait_until

PLACE = ["--zone=us-west4-a", "--project=my-project"]
TPU = ["--name=my-tpu", *PLACE]
QUEUED = ["compute", "tpus", "queued-resources"]
NODE = ["compute", "tpus", "tpu-vm"]
DESCRIBE = [*QUEUED, "describe", "my-tpu", *PLACE, "--format=value(state.state)"]
DELETE = [*QUEUED, "delete", "my-tpu", *PLACE, "--force", "--quiet"]
FLAGS = ["--config=configs/cifar.py:BaseCNN-2-CC", "--workdir=gs://my-bucket/cifar"]
WORKERS = 2


class Cloud(StandIns):
    """A TPU with two workers, and a repository from which it is used."""

    def __init__(self, folder):
        super().__init__(
            folder, gcloud=stand_ins.GCLOUD, python3__11=stand_ins.PYTHON, python3=stand_ins.PYTHON
        )
        self.workers = [folder / f"worker{index}" for index in range(WORKERS)]
        self.repository = folder / "repository"
        shutil.copytree(LAUNCH, self.repository / "launch")
        (self.repository / "constraints.txt").write_text("jax==1.0\n")
        (self.repository / "pyproject.toml").write_text("[project]\n")
        self.git("init", "--quiet")
        self.commit()
        self.new_machines()
        self.env["TPU_POLL_SECONDS"] = "0"

    def git(self, *words):
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", *who, "-C", self.repository, *words], check=True)

    def commit(self):
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message=a commit")

    def new_machines(self):
        for worker in self.workers:
            shutil.rmtree(worker, ignore_errors=True)
            worker.mkdir()

    @property
    def script(self):
        return self.repository / "launch/tpu_vm.sh"

    def tpu(self, command, *options, **more):
        """Runs a command of the script on the TPU."""
        return self.run(self.script, command, *TPU, *options, **more)

    def ok(self, command, *options, **more):
        done = self.tpu(command, *options, **more)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def file(self, index, name):
        return self.workers[index] / "multipath_jax_tpu" / name

    def log(self, index):
        return self.file(index, "run.log").read_text()

    def group(self, index):
        return int(self.file(index, "run.pid").read_text().split()[0])

    def runs_of(self):
        """The flags of the runs so far, when each worker has begun as many."""
        return [run["argv"][3:] for run in self.calls("runs")]

    def train(self, *flags):
        """Trains, and waits until the run is there on each worker."""
        before = len(self.calls("runs"))
        said = self.ok("train", *(["--", *flags] if flags else []))
        wait_until(lambda: len(self.calls("runs")) == before + WORKERS)
        return said


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
    """The call that asks for the TPU."""
    kind = [f"--accelerator-type={type}", f"--runtime-version={runtime}"]
    return [*QUEUED, "create", "my-tpu", "--node-id=my-tpu", *PLACE, *kind, *more]


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
        (
            ["--accelerator-type=v4-32", "--runtime-version=tpu-ubuntu2204-base"],
            created("--spot", type="v4-32", runtime="tpu-ubuntu2204-base"),
        ),
    ],
)
def test_create_asks_for_a_queued_resource(cloud, options, call):
    cloud.ok("create", *options)
    assert cloud.calls("gcloud") == [DESCRIBE, call]


@pytest.mark.parametrize("state", ["ACTIVE", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACCEPTED"])
def test_create_leaves_alone_what_is_there(cloud, state):
    cloud.tell(**{"queued-resources": [state]})
    assert cloud.ok("create") == f"the queued resource my-tpu is there: {state}\n"
    assert cloud.calls("gcloud") == [DESCRIBE]


@pytest.mark.parametrize("state", ["SUSPENDED", "FAILED"])
def test_create_replaces_what_was_preempted_or_failed(cloud, state):
    cloud.tell(**{"queued-resources": [state]})
    cloud.ok("create")
    assert cloud.calls("gcloud") == [DESCRIBE, DELETE, created("--spot")]


def test_create_does_not_replace_what_is_still_going_away(cloud):
    cloud.tell(**{"queued-resources": ["SUSPENDING"]})
    done = cloud.tpu("create")
    assert done.returncode == 1
    assert "is SUSPENDING" in done.stderr
    assert cloud.calls("gcloud") == [DESCRIBE]


def test_create_waits_until_the_tpu_is_there(cloud):
    cloud.tell(after_create=["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"])
    said = cloud.ok("create", "--wait")
    assert [line.split()[1] for line in said.splitlines()] == [
        "WAITING_FOR_RESOURCES",
        "PROVISIONING",
        "ACTIVE",
    ]
    assert cloud.calls("gcloud")[2:] == [DESCRIBE] * 3


def test_create_does_not_wait_for_what_failed(cloud):
    cloud.tell(after_create=["PROVISIONING", "FAILED"])
    done = cloud.tpu("create", "--wait")
    assert (done.returncode, done.stderr) == (1, "error: the queued resource is FAILED\n")


@pytest.mark.parametrize("command", ["create", "status"])
def test_other_errors_of_gcloud_end_the_command(cloud, command):
    cloud.tell(gcloud_fails={"at": "describe", "message": "PERMISSION_DENIED", "status": 3})
    done = cloud.tpu(command)
    assert (done.returncode, done.stderr) == (3, "PERMISSION_DENIED\n")
    assert cloud.calls("gcloud") == [DESCRIBE]


# --- setup ---


def test_setup_brings_head_to_every_worker_and_installs(cloud):
    (cloud.repository / "constraints.txt").write_text("jax==9.9 # not committed\n")
    done = cloud.tpu("setup")
    assert done.returncode == 0
    assert done.stderr.startswith("warning: there are changes that are not committed")
    for index in range(WORKERS):
        assert cloud.file(index, "source/constraints.txt").read_text() == "jax==1.0\n"
        python = cloud.file(index, "venv/bin/python")
        assert python.exists()
        install = cloud.calls("pip")[index]
        assert install["argv"][:3] == ["-m", "pip", "install"]
        assert install["argv"][-3:] == ["-c", "constraints.txt", ".[tpu]"]
        assert os.path.samefile(install["cwd"], cloud.file(index, "source"))
    assert len(cloud.calls("pip")) == WORKERS


def test_setup_again_does_nothing_that_is_done(ready):
    said = ready.ok("setup")
    assert said.count("the packages are installed") == WORKERS
    assert ready.calls("pip") == ready.calls("venvs") == []


def test_setup_installs_again_only_for_other_packages(ready):
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


def test_setup_that_failed_is_begun_again(cloud):
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


def test_setup_fetches_a_python_that_is_missing(cloud):
    fetched = """
if argv[:2] == ["python", "find"]:
    print(HERE / "bin/python3.11")
record("uv", argv)
"""
    uv = cloud.folder / "uv"
    StandIns._write(uv, stand_ins.PRELUDE + fetched)
    for index in range(WORKERS):
        place = cloud.file(index, "tools/bin/uv")
        place.parent.mkdir(parents=True)
        shutil.copy(uv, place)
    assert "python3.77" not in os.listdir(cloud.folder / "bin")
    cloud.ok("setup", "--python=3.77")
    assert cloud.calls("uv")[:2] == [
        ["python", "install", "--quiet", "3.77"],
        ["python", "find", "--managed-python", "3.77"],
    ]
    assert re.fullmatch(r"uv==\d+\.\d+\.\d+", cloud.calls("pip")[0]["argv"][-1])
    assert cloud.file(0, "venv/.ready").exists()


# --- train ---


def test_train_starts_a_detached_run_on_every_worker(ready):
    flags = [*FLAGS, "--config.train_for=2 epochs", "--config.name=it's $HOME"]
    said = ready.train(*flags)
    assert said.count("nothing to stop") == said.count("started, process group") == WORKERS
    assert ready.runs_of() == [[*flags, "--distributed=auto"]] * WORKERS
    for index in range(WORKERS):
        group = ready.group(index)
        assert os.getsid(group) == group  # no terminal, no connection holds it
        header = ready.log(index).splitlines()[0]
        assert re.match(r"=== \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ \S+: python -m multipath_jax", header)
        written = header.partition("multipath_jax.main ")[2]
        assert shlex.split(written) == [*flags, "--distributed=auto"]
    folders = {run["cwd"] for run in ready.calls("runs")}
    assert folders == {str(ready.file(index, "source").resolve()) for index in range(WORKERS)}


def test_train_keeps_the_user_s_distributed_flag(ready):
    ready.train(*FLAGS, "--distributed=off")
    assert ready.runs_of() == [[*FLAGS, "--distributed=off"]] * WORKERS


def test_train_ends_the_earlier_run_everywhere_before_it_starts_one(ready):
    ready.train(*FLAGS)
    earlier = [ready.group(index) for index in range(WORKERS)]
    said = ready.train(*FLAGS, "--config.seed=1")
    assert [line.split(": ")[1].split(",")[0] for line in said.splitlines()] == [
        *["stopped the earlier run"] * WORKERS,
        *["started"] * WORKERS,
    ]
    assert not any(alive(group) for group in earlier)
    for index in range(WORKERS):
        assert alive(ready.group(index))
        log = ready.log(index)
        assert log.count("=== ") == 3  # two headers, and the end of the first
        assert (
            log.index("saved") < log.index("ended with status 143") < log.index("--config.seed=1")
        )


def test_a_run_that_does_not_stop_is_killed(ready):
    ready.train(*FLAGS, "--stubborn")
    earlier = [ready.group(index) for index in range(WORKERS)]
    said = ready.ok("train", "--grace=0", "--", *FLAGS)
    assert said.count("killed the earlier run") == WORKERS
    assert not any(alive(group) for group in earlier)


def test_a_number_that_is_another_program_s_by_now_is_left_alone(ready):
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as other:
        try:
            ready.file(0, "run.pid").write_text(f"{other.pid} 1\n")
            assert ready.train(*FLAGS).count("nothing to stop") == WORKERS
            assert other.poll() is None
        finally:
            other.kill()


def test_a_run_that_ended_says_so(ready):
    ready.train(*FLAGS, "--quick")
    wait_until(lambda: "ended with status 0" in ready.log(0))
    assert ready.ok("status").count("no run; last line: === ") >= 1


def test_after_a_preemption_the_same_command_runs_again(ready):
    flags = [*FLAGS, "--config.train_for=2 epochs", "--config.name=it's"]
    ready.train(*flags)
    ready.end()
    ready.new_machines()  # nothing of the old ones is left
    ready.tell(**{"queued-resources": ["SUSPENDED"], "tpu-vm": None})
    assert "preempted: create --wait, setup and train" in ready.ok("status")
    ready.ok("create", "--wait")
    ready.ok("setup")
    ready.forget()
    assert "again: --config=configs" in ready.train()
    assert ready.runs_of() == [[*flags, "--distributed=auto"]] * WORKERS


def test_each_tpu_has_its_own_last_command(ready):
    ready.train(*FLAGS)
    done = ready.run(ready.script, "train", "--name=other", *PLACE)
    assert done.returncode == 2
    assert "no earlier run of other is recorded" in done.stderr


def test_train_before_setup_fails(cloud):
    done = cloud.tpu("train", "--", *FLAGS)
    assert done.returncode == 127
    cloud.ok("setup")
    shutil.rmtree(cloud.file(1, "venv"))
    done = cloud.tpu("train", "--", *FLAGS)
    assert done.returncode == 1
    assert "not set up: run setup first" in done.stderr


def test_a_workdir_on_the_vm_is_warned_of(ready):
    done = ready.tpu("train", "--", FLAGS[0], "--workdir=runs/here")
    assert done.returncode == 0
    assert done.stderr.startswith("warning: runs/here is lost with the TPU VM")


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


def test_logs_before_a_run(ready):
    done = ready.tpu("logs")
    assert done.returncode == 1
    assert "there is no log yet" in done.stderr


def test_status_of_what_runs(ready):
    ready.train(*FLAGS)
    wait_until(lambda: all("flags" in ready.log(index) for index in range(WORKERS)))
    lines = ready.ok("status").splitlines()
    assert lines[:2] == ["queued resource my-tpu: ACTIVE", "TPU VM my-tpu: READY"]
    assert len(lines) == 2 + WORKERS
    for index, line in enumerate(lines[2:]):
        assert f": running, process group {ready.group(index)}; last line: flags [" in line


def test_status_of_nothing(cloud):
    assert cloud.ok("status") == "queued resource my-tpu: none\nTPU VM my-tpu: none\n"
    assert len(cloud.calls("gcloud")) == 2


@pytest.mark.parametrize("answer", ["y\n", "yes\n"])
def test_delete_asks(cloud, answer):
    cloud.tell(**{"queued-resources": ["ACTIVE"]})
    assert cloud.tpu("delete", input=answer).returncode == 0
    assert cloud.calls("gcloud") == [DELETE]


@pytest.mark.parametrize("answer", ["n\n", "\n", "", "why\n"])
def test_delete_takes_no_for_an_answer(cloud, answer):
    done = cloud.tpu("delete", input=answer)
    assert done.returncode == 1
    assert "nothing was deleted" in done.stderr
    assert cloud.calls("gcloud") == []


def test_delete_without_a_question(cloud):
    cloud.tell(**{"queued-resources": ["ACTIVE"]})
    cloud.ok("delete", "--yes")
    assert cloud.calls("gcloud") == [DELETE]


# --- dry runs, variables, bad input ---


@pytest.mark.parametrize(
    "words",
    [
        ["create"],
        ["create", "--wait", "--capacity=on-demand"],
        ["setup"],
        ["setup", "--repo=https://example.com/a.git", "--ref=v1"],
        ["train", "--", *FLAGS, "--config.train_for=2 epochs", "--config.name=it's"],
        ["logs", "--worker=1", "--lines=5"],
        ["status"],
        ["delete", "--yes"],
    ],
    ids=" ".join,
)
def test_a_dry_run_prints_what_is_then_run(cloud, words):
    command, *options = words
    if command in ("train", "logs", "status"):
        cloud.ok("create")
        cloud.ok("setup")
        cloud.file(1, "run.log").write_text("a line\n")
        cloud.forget()
    if command == "delete":
        cloud.tell(**{"queued-resources": ["ACTIVE"]})
    before = sorted(path for path in cloud.folder.rglob("*") if path.name != "gcloud.jsonl")
    said = cloud.ok(command, "--dry-run", *options)
    assert sorted(path for path in cloud.folder.rglob("*")) == before
    assert cloud.calls("gcloud") == []
    printed = [shlex.split(line) for line in said.splitlines() if not line.startswith("#")]
    if "--repo=https://example.com/a.git" in options:  # it is not there to be cloned
        cloud.run(
            "git", "config", "--global", "url.file:///nowhere.insteadOf", "https://example.com"
        )
        assert cloud.tpu(command, *options).returncode != 0
    else:
        cloud.ok(command, *options)
    run = [["gcloud", *call] for call in cloud.calls("gcloud")]
    assert [call for call in printed if call[0] == "gcloud"] == run
    assert {call[0] for call in printed} <= {"gcloud", "git", "mkdir"}


def test_the_stand_ins_are_all_there_is(cloud):
    for name in ("gcloud", "python3.11", "srun", "scancel", "scontrol", "ssh", "curl"):
        found = shutil.which(name, path=cloud.env["PATH"])
        assert found is None or found.startswith(f"{cloud.folder}/bin/")


def test_a_dry_run_needs_no_gcloud_and_no_answer(cloud):
    (cloud.folder / "bin/gcloud").unlink()
    assert shutil.which("gcloud", path=cloud.env["PATH"]) is None
    assert cloud.ok("delete", "--dry-run") == f"gcloud {shlex.join(DELETE)}\n"
    done = cloud.tpu("delete", "--yes")
    assert (done.returncode, done.stderr) == (2, "error: gcloud is not installed\n")


def test_variables_stand_for_options(cloud):
    cloud.env |= {
        "TPU_NAME": "my-tpu",
        "TPU_ZONE": "us-west4-a",
        "TPU_PROJECT": "my-project",
        "TPU_TYPE": "v6e-8",
        "TPU_RUNTIME": "v2-alpha-tpuv6e",
        "TPU_CAPACITY": "on-demand",
    }
    cloud.run(cloud.script, "create")
    cloud.run(cloud.script, "create", "--name=b", "--accelerator-type=v6e-1", "--dry-run")
    assert cloud.calls("gcloud") == [DESCRIBE, created(type="v6e-8", runtime="v2-alpha-tpuv6e")]
    said = cloud.run(cloud.script, "create", "--name=b", "--accelerator-type=v6e-1", "--dry-run")
    assert "create b --node-id=b" in said.stdout  # an option goes before its variable
    assert "--accelerator-type=v6e-1 " in said.stdout


def test_without_a_project_gcloud_s_own_is_used(cloud):
    cloud.run(cloud.script, "delete", "--yes", "--name=my-tpu", "--zone=us-west4-a")
    assert cloud.calls("gcloud")[0][3:] == ["delete", "my-tpu", PLACE[0], "--force", "--quiet"]


def test_help_has_every_option_and_variable(cloud):
    done = cloud.run(cloud.script, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    source = cloud.script.read_text()
    parser = source[source.index("read_options() {") : source.index("check_options() {")]
    options = set(re.findall(r"^ +(-[-a-z]+)(?:=\*)?(?: \| -h)?\)", parser, re.MULTILINE))
    variables = set(re.findall(r"\$\{(TPU_[A-Z]+)", source)) - {"TPU_POLL"}  # for tests
    listed = re.findall(r"^(-[-a-z]+)", done.stdout, re.MULTILINE)
    assert set(listed) == options - {"--"}
    assert len(options) > 15
    assert variables == set(re.findall(r"TPU_[A-Z]+", done.stdout))
    assert cloud.run(cloud.script, "train", "--help").stdout == done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "which command?"),
        (["start"], "what is 'start'?"),
        (["create"], "which TPU?"),
        (["create", "--name=a"], "in which zone?"),
        (["create", "--name=A_b", PLACE[0]], "--name=A_b: lower-case"),
        (["create", "--name=a;b", PLACE[0]], "--name=a;b: lower-case"),
        (["create", "--name=a", "--zone=europe"], "--zone=europe is not like"),
        (["create", *TPU, "--project=my project"], "is not a project's id"),
        (["create", *TPU, "--accelerator-type=v5e"], "is not like v5litepod-16"),
        (["create", *TPU, "--runtime-version="], "is not like v2-alpha-tpuv5-lite"),
        (["create", *TPU, "--capacity=free"], "spot or on-demand"),
        (["create", *TPU, "--zone", "us-west4-a"], "what is '--zone'?"),
        (["create", *TPU, "--spots"], "what is '--spots'?"),
        (["create", *TPU, "there"], "what is 'there'?"),
        (["create", *TPU, "--yes"], "--yes is an option of delete, not of create"),
        (["delete", *TPU, "--capacity=spot"], "--capacity is an option of create, not of delete"),
        (["status", *TPU, "-f"], "-f is an option of logs"),
        (["train", *TPU, "--worker=0", "--", *FLAGS], "--worker is an option of logs"),
        (["setup", *TPU, "--python=3.10"], "--python=3.10: 3.11 or newer"),
        (["setup", *TPU, "--python=latest"], "--python=latest: 3.11 or newer"),
        (["setup", *TPU, "--repo=https://a/b.git"], "--repo needs --ref"),
        (["setup", *TPU, "--ref=v1"], "--ref needs --repo"),
        (["setup", *TPU, "--repo=https://a/b.git", "--ref=--force"], "begins with a hyphen"),
        (["setup", *TPU, "--", *FLAGS], "what follows -- is an option of train"),
        (["train", *TPU], "no earlier run of my-tpu is recorded"),
        (["train", *TPU, "--"], "there are no flags after --"),
        (["train", *TPU, "--grace=soon", "--", *FLAGS], "--grace=soon: a number of seconds"),
        (["train", *TPU, "--", FLAGS[1]], "need --config="),
        (["train", *TPU, "--", FLAGS[0]], "need --workdir=gs://"),
        (["train", *TPU, *FLAGS], "what is '--config=configs/cifar.py:BaseCNN-2-CC'?"),
        (["logs", *TPU, "--worker=all"], "--worker=all: a number"),
        (["logs", *TPU, "--lines=-5"], "--lines=-5: a number"),
    ],
)
def test_wrong_use_is_one_line(cloud, words, message):
    done = cloud.run(cloud.script, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert cloud.calls("gcloud") == []
    assert not (cloud.folder / ".local").exists()
