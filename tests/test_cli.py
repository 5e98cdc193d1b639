"""Streams, errors and exit statuses of all programs; paths in their arguments."""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

import multipath_jax
from multipath_jax.errors import Failure, UserError
from multipath_jax.utils import filesystem

PACKAGE = pathlib.Path(multipath_jax.__file__).parent
PROGRAM = """
import os, signal, sys, types
sys.modules["multipath_jax"] = package = types.ModuleType("multipath_jax")  # without its networks
package.__path__ = [{package!r}]
from multipath_jax.utils import cli
from multipath_jax.errors import Failure, UserError

def main(argv):
    {body}

cli.run(main{options})
"""


def program(body, *arguments, options="", shell="{}", **environment):
    """Runs a program with this body in a shell; returns exit status, stdout and stderr."""
    code = PROGRAM.format(body=body, options=options, package=str(PACKAGE))
    command = shell.format('"$0" -c "$1" "${@:2}"')
    done = subprocess.run(
        ["bash", "-c", command, sys.executable, code, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ("return 3", 3, ""),
        ("raise UserError('mend it\\nso')", 2, "error: mend it\n"),
        ("raise Failure('no end')", 1, "error: no end\n"),
        ("open('/nowhere/at/all')", 1, "error: /nowhere/at/all: No such file or directory\n"),
        ("os.rename('/nowhere/a', '/b')", 1, "error: /nowhere/a: /b: No such file or directory\n"),
        ("os.kill(os.getpid(), signal.SIGINT)", 130, "interrupted\n"),
        ("sys.exit(0)", 0, ""),
        ("from absl import logging; logging.error('noise of a library')", 0, ""),
        ("import logging; logging.getLogger('asyncio').error('noise of a library')", 0, ""),
    ],
)
def test_every_end_has_its_status_and_at_most_a_line(body, status, said):
    assert program(f"print('before'); {body}") == (status, "before\n", said)


def test_a_fault_of_the_program_keeps_its_traceback():
    status, _, said = program("return {}[0]")
    assert status == 1
    assert "Traceback" in said


PRINTS = "[print(n) for n in range(20_000)]; return 0"
HEAD = "{{ {}; echo status $? >&2; }} | head -1"


def test_a_reader_that_has_seen_enough_is_an_error_of_what_is_to_go_on():
    said = "error: the standard output: Broken pipe\nstatus 1\n"
    assert program(PRINTS, shell=HEAD)[1:] == ("0\n", said)
    assert program(PRINTS, shell=HEAD, options=", only_prints=True")[1:] == ("0\n", "status 0\n")


def test_a_full_disk_under_the_output_is_one_line():
    said = "error: the standard output: No space left on device\n"
    for body in (PRINTS, "print('little'); return 0", "print('at once', flush=True); return 0"):
        assert program(body, shell="{} > /dev/full") == (1, "", said)
    assert program("raise UserError('mend it')", shell="{} 2> /dev/full") == (2, "", "")


def test_closed_streams_are_no_errors():
    body = "print('nobody', sys.stdout.isatty()); print('hears', file=sys.stderr); return 0"
    for closed in (">&-", "2>&-", ">&- 2>&-"):
        assert program(body, shell=f"{{}} {closed}")[0] == 0


JAX = "import jax; jax.numpy.ones(3); return 0"


@pytest.mark.parametrize(
    ("platforms", "message"),
    [("quantum", "'quantum' is not in the list"), ("cuda", "no such device")],
)
@pytest.mark.skipif(
    importlib.util.find_spec("jax_plugins") is not None, reason="there are devices of more kinds"
)
def test_devices_that_are_not_there_are_one_line(platforms, message):
    status, out, said = program(JAX, JAX_PLATFORMS=platforms)
    assert (status, out, said.count("\n")) == (2, "", 1)
    assert said.startswith(f"error: JAX cannot start on JAX_PLATFORMS={platforms}: ")
    assert message in said


def test_every_runnable_module_ends_so():
    """Except the benchmark's worker, all use `cli.run` or `config_flags.run` and have a command."""
    modules = set()
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        if '\nif __name__ == "__main__":\n' in text and path.name != "worker.py":
            entry = text.partition("def run() -> NoReturn:\n")[2]
            assert re.search(r"^    (cli|config_flags)\.run\(main\b.*\)$", entry, re.M), path
            assert entry.endswith('\n\nif __name__ == "__main__":\n    run()\n'), path
            modules.add(".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts))
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    assert {f"{module}:run" for module in modules} == set(project["scripts"].values())
    for command, entry in project["scripts"].items():
        name = re.fullmatch(r"multipath_jax\.(\w+)(\.__main__)?:run", entry)[1]
        assert command == f"multipath-{'train' if name == 'main' else name.replace('_', '-')}"


# Paths


def test_home_folders_are_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert filesystem.local("--out", "~/x.png") == tmp_path / "x.png"
    assert str(filesystem.path("workdir", "~/run")) == str(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert str(filesystem.path("workdir", "run/../other")) == str(tmp_path / "other")


def test_the_address_of_a_bucket_stays_one(monkeypatch):
    """Making the address an absolute path would turn it into a local folder."""
    monkeypatch.setattr("fsspec.get_filesystem_class", lambda kind: None)
    for address in ("gs://bucket/run", "s3://bucket/run"):
        assert str(filesystem.path("workdir", address)) == address


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hf://a/b", "no access to hf://; use a path on this machine or gs:// or s3://"),
        ("torchvision://resnet18", "no access to torchvision://"),
        ("runs/gs://a", "no access to runs/gs://"),
        ("~nobody_here/x", "there is no such home folder"),
        ("dangling", "dangling is a broken link to gone; fix or remove it"),
        ("dangling/inside/it", "dangling is a broken link to gone; fix or remove it"),
    ],
)
def test_paths_that_lead_nowhere_are_refused_by_name(text, message, tmp_path, monkeypatch):
    (tmp_path / "dangling").symlink_to("gone")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        filesystem.path("init_from", text)
    assert str(caught.value).startswith(f"init_from={text}: ")


def test_a_bucket_whose_package_is_missing_says_which(monkeypatch):
    def missing(kind):
        raise ImportError("Please install gcsfs")

    monkeypatch.setattr("fsspec.get_filesystem_class", missing)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="workdir=gs://a/b: Please install gcsfs"):
        filesystem.path("workdir", "gs://a/b")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    target, link = tmp_path / "x.json", tmp_path / "link.json"
    link.symlink_to(target)
    with filesystem.replacing(target) as new:
        assert new.suffix == ".json"
        new.write_text("first")
    with filesystem.replacing(link) as new:
        new.write_text("second")
    assert (target.read_text(), link.is_symlink()) == ("second", True)

    def fill():
        with filesystem.replacing(target) as new:
            new.write_text("thi")
            raise OSError(28, "No space left on device")

    with pytest.raises(Failure, match=rf"{target} could not be written \(No space left"):
        fill()
    assert target.read_text() == "second"
    assert sorted(tmp_path.iterdir()) == [link, target]


def test_a_device_is_written_to_and_not_replaced():
    out = filesystem.output_file("--json", "/dev/null", replace=True)
    with filesystem.replacing(out) as new:
        new.write_text("gone")
    assert pathlib.Path("/dev/null").is_char_device()
    full = pytest.raises(Failure, match="/dev/full could not be written")
    with full, filesystem.replacing("/dev/full") as new:
        new.write_text("never")
