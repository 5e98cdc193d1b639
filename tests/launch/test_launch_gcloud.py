"""Tests of all gcloud commands in the scripts and documents, with gcloud's own parser."""

import json
import os
import re
import shlex
import shutil
import subprocess

import fakes
import pytest
from fakes import LAUNCH, ROOT, Fakes

FLAGS = ["--", "--config=cifar:BaseCNN-2-CC", "--workdir=gs://my-bucket/runs/cifar"]
TPU = ["--name=my-tpu", "--zone=us-central1-ai1a", "--project=my-project"]
CREATE = [
    *("--accelerator-type=v6e-8", "--valid-until-duration=6h", "--create-flag=--network=a"),
    *("--create-flag=--service-account=a@b.iam.gserviceaccount.com", "--create-flag=--labels=a=b"),
]
DRY_RUNS = [
    ["create"],
    ["create", *CREATE, "--wait"],
    ["create", "--capacity=on-demand"],
    ["create", "--capacity=reserved", "--create-flag=--reservation-host-project=other"],
    ["create", "--node-count=4", "--wait"],
    ["create", "--release-track=alpha", "--create-flag=--max-run-duration=24h"],
    ["setup"],
    ["setup", "--repo=https://example.com/a.git", "--ref=v1", "--node-count=2"],
    ["setup", "--ssh-flag=--internal-ip", "--ssh-flag=--ssh-flag=-p 22"],
    ["setup", "--release-track=alpha", "--ssh-flag=--tunnel-through-iap"],
    ["train", *FLAGS, "--config.train_for=2 epochs", "--config.name=it's $HOME"],
    ["keep", "--max-hours=24", *CREATE, *FLAGS],
    ["stop"],
    ["logs", "--worker=1", "-f"],
    ["status", "--node-count=2"],
    ["outcome"],
    ["delete"],
]


WRONG = [
    ["compute", "tpus", "tpu-vm", "ssh", "a", "--zone=us-west4-a", "--tunnel-through-iap"],
    ["beta", "compute", "tpus", "queued-resources", "describe", "a", "--zone=us-west4-a"],
    [*("compute", "tpus", "queued-resources", "delete", "a", "--zone=us-west4-a"), "--forced"],
]
DOCUMENTS = ["README.md", "docs/launching.md"]


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """An environment without gcloud."""
    return Fakes(tmp_path_factory.mktemp("dry"))


def dry_run(programs, *command, **more):
    """The gcloud commands that a script prints in a dry run."""
    done = programs.run(*command, **more)
    assert (done.returncode, done.stderr) == (0, ""), command
    lines = map(shlex.split, (line for line in done.stdout.splitlines() if line[0] != "#"))
    return [words[1:] for words in lines if words[0] == "gcloud"]


def prepared(folder, *parts):
    """Creates a data directory with the files of a prepared data set that data.sh checks."""
    version = folder.joinpath("data", *parts)
    version.mkdir(parents=True)
    (version / "dataset_info.json").write_text("{}")
    return folder / "data"


def blocks(path):
    """The commands in a document's bash blocks, of lines that start with gcloud or launch/."""
    text = "".join(re.findall(r"```bash\n(.*?)```", path.read_text(), re.DOTALL))
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True) if line.startswith(("gcloud", "launch/")) else []
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            yield words[:end]
            words = words[end + 1 :]


def documented(programs, path, folder):
    """The gcloud commands in a document, and those of dry runs of its script commands."""
    prepared(folder, "cifar10", "3.0.2")
    env = {"TPU_NAME": "my-tpu", "TPU_ZONE": "us-west4-a"}
    for words in blocks(path):
        if words[0] == "gcloud":
            yield words[1:]
        if words[0] in ("launch/tpu_vm.sh", "launch/data.sh"):
            script = [ROOT / words[0], words[1], "--dry-run", *words[2:]]
            yield from dry_run(programs, *script, env=env, cwd=folder)


def scripted(programs, folder):
    """The gcloud commands of `DRY_RUNS` and of a dry run of data.sh."""
    for command, *words in DRY_RUNS:
        yield from dry_run(programs, LAUNCH / "tpu_vm.sh", command, *TPU, "--dry-run", *words)
    data = prepared(folder, "cifar10", "3.0.2")
    yield from dry_run(programs, LAUNCH / "data.sh", "--dry-run", data, "gs://my-bucket/data")


@pytest.fixture(scope="module")
def gcloud(tmp_path_factory):
    """The path of gcloud, and an environment in which it has no account."""
    if not (program := shutil.which("gcloud")):
        pytest.skip("gcloud is not installed: it is Debian's google-cloud-cli")
    return program, {**os.environ, "CLOUDSDK_CONFIG": str(tmp_path_factory.mktemp("gcloud"))}


@pytest.fixture(scope="module")
def parsed(gcloud, programs, tmp_path_factory):
    """The results of gcloud's parser, from a single process, since it takes seconds to start.

    These are, by group, all commands (``groups``) and those that the parser refuses (``refused``),
    and the flags of each command by track and name (``flags``).
    """
    program, env = gcloud
    where = [program, "info", "--format=value(basic.python_location,installation.sdk_root)"]
    output = subprocess.run(where, env=env, capture_output=True, text=True, check=True).stdout
    python, root = output.strip().split("\t")
    groups = {"scripts": list(scripted(programs, tmp_path_factory.mktemp("scripts")))}
    for name in DOCUMENTS:
        folder = tmp_path_factory.mktemp("document")
        groups[name] = list(documented(programs, ROOT / name, folder))
    groups["wrong"] = WRONG
    commands = [command for group in groups.values() for command in group]
    tracks = {"ga": [], "alpha": ["alpha"]}
    names = [(track, name) for track in tracks for name in fakes.GCLOUD_FLAGS]
    flags_of = [[*tracks[track], "compute", "tpus", *name.split()] for track, name in names]
    request = json.dumps({"root": root, "commands": commands, "flags_of": flags_of})
    script = [python, ROOT / "tests/launch/gcloud_parser.py"]
    done = subprocess.run(script, input=request, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    errors = iter(answer["errors"])
    refused = {key: [c for c in group if next(errors)] for key, group in groups.items()}
    flags = dict(zip(names, answer["flags"], strict=True))
    return {"refused": refused, "flags": flags, "groups": groups}


@pytest.mark.parametrize("group", ["scripts", *DOCUMENTS])
def test_gcloud_accepts_all_commands(parsed, group):
    assert len(parsed["groups"][group]) > 5
    assert parsed["refused"][group] == []


def test_gcloud_rejects_wrong_commands(parsed):
    assert parsed["refused"]["wrong"] == WRONG


def test_the_fake_has_the_flags_of_gcloud(parsed):
    for name, flags in fakes.GCLOUD_FLAGS.items():
        more = fakes.GCLOUD_FLAGS_ALPHA.get(name, "")
        assert set(flags.split()) <= set(parsed["flags"]["ga", name])
        assert {*flags.split(), *more.split()} <= set(parsed["flags"]["alpha", name])
        assert not set(more.split()) & set(parsed["flags"]["ga", name])


def test_output_format_of_gcloud(gcloud):
    fields = "state.state,state.failedData.error.message,networkEndpoints.len()"
    things = [
        {"state": {"state": "FAILED", "failedData": {"error": {"message": "no quota"}}}},
        {"state": {"state": "ACTIVE"}, "networkEndpoints": [{}, {}]},
    ]
    program, env = gcloud
    command = [program, "meta", "list-from-json", f"--format=value({fields})"]
    done = subprocess.run(
        command, input=json.dumps(things), env=env, capture_output=True, text=True
    )
    assert done.stdout == "FAILED\tno quota\t0\nACTIVE\t\t2\n"


def test_documented_dry_run_of_keep(programs):
    """The transcript in the document equals the output of the dry run."""
    text = (ROOT / "docs/launching.md").read_text()
    shown = re.search(r"```console\n\$ (.*?)\n(.*?)```", text, re.DOTALL)
    env = {"TPU_NAME": "my-tpu", "TPU_ZONE": "us-west4-a", "HOME": "/home/me"}
    _, *words = shlex.split(shown[1])
    done = programs.run(LAUNCH / "tpu_vm.sh", *words, env=env)
    assert shown[2] == done.stdout.replace(str(ROOT), "~/multipath_jax").replace("/home/me", "~")


# --- data.sh ---


@pytest.mark.parametrize("parts", [("cifar10", "3.0.2"), ("imagenet256", "subset100", "1.0.0")])
def test_data_is_copied_to_the_bucket(programs, tmp_path, parts):
    output = dry_run(
        programs, LAUNCH / "data.sh", prepared(tmp_path, *parts), "gs://b/d", "--dry-run"
    )
    assert output == [["storage", "rsync", "--recursive", str(tmp_path / "data"), "gs://b/d"]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "two arguments are required"),
        (["data"], "two arguments are required"),
        (["data", "gs://b"], "'gs://b': must have the form gs://BUCKET/FOLDER"),
        (["data", "s3://b/d"], "'s3://b/d': must have the form gs://BUCKET/FOLDER"),
        (["nowhere", "gs://b/d"], "nowhere is not a directory"),
        (
            ["empty", "gs://b/d"],
            "no prepared data set in empty; see python -m multipath_jax.prepare",
        ),
        (["--delete", "data", "gs://b/d"], "unknown argument '--delete'"),
        (["data", "gs://b/d"], "gcloud is not installed"),
    ],
)
def test_usage_errors_of_data_are_one_line(programs, tmp_path, words, message):
    prepared(tmp_path, "cifar10", "3.0.2")
    (tmp_path / "empty").mkdir()
    done = programs.run(LAUNCH / "data.sh", *words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
