"""`python -m multipath_jax.prepare`: output, errors, interruptions and resuming."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from multipath_jax import prepare
from multipath_jax.data.imagenet import preparation
from multipath_jax.data.prepared import open_prepared
from multipath_jax.errors import UserError

sys.path.insert(0, str(pathlib.Path(__file__).parent / "data"))
from toy_sources import WNIDS, write_imagenet

# Prepares small shards, and sends itself a signal when three of them are finished.
INTERRUPTED = """
import json, multiprocessing, os, signal, sys
from multipath_jax import prepare
from multipath_jax.utils import cli
from multipath_jax.data.imagenet import preparation

preparation._IMAGES_PER_SHARD = 4
seen = []

class Bar(prepare.tqdm):
    def update(self, images):
        seen.append(images)
        if len(seen) == 3:
            workers = [child.pid for child in multiprocessing.active_children()]
            print(json.dumps(workers), flush=True)
            os.killpg(0, signal.SIGINT) if sys.argv[0] == "SIGINT" else os.kill(os.getpid(), 9)

if __name__ == "__main__":
    prepare.tqdm = Bar
    del sys.argv[0]
    cli.run(prepare.main)
"""


@pytest.fixture
def source(tmp_path) -> pathlib.Path:
    return write_imagenet(tmp_path / "source")


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(preparation, "_IMAGES_PER_SHARD", 4)


def _flags(source, data_dir, *flags) -> list[str]:
    return ["imagenet", f"--source={source}", f"--data_dir={data_dir}", "--workers=1", *flags]


def _error(*argv) -> str:
    with pytest.raises(UserError) as caught:
        prepare.main(list(argv))
    message = str(caught.value)
    assert "\n" not in message
    return message


def _folder(data_dir) -> pathlib.Path:
    return pathlib.Path(data_dir) / "imagenet256" / "full" / "1.0.0"


def _contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_says_what_it_finds_what_it_takes_and_where_the_result_is(source, tmp_path, capsys):
    data_dir = tmp_path / "data"
    assert prepare.main(_flags(source, data_dir)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "15 training and 6 validation images of 3 classes"
    assert lines[2].startswith(f"{data_dir}: about 756kB needed, ")
    assert lines[3] == (
        f"imagenet256/full/1.0.0 is in {_folder(data_dir)}: 15 training and 6 validation images"
    )


def test_again_there_is_nothing_to_do(source, tmp_path, capsys):
    prepare.main(_flags(source, tmp_path / "data"))
    before = _contents(_folder(tmp_path / "data"))
    capsys.readouterr()
    assert prepare.main(_flags("not looked at", tmp_path / "data")) == 0
    assert capsys.readouterr().out.endswith("1.0.0 already\n")
    assert _contents(_folder(tmp_path / "data")) == before
    assert os.listdir(_folder(tmp_path / "data").parent) == ["1.0.0"]


def test_says_what_was_left_out(source, tmp_path, capsys):
    (source / "train" / WNIDS[0] / f"{WNIDS[0]}_0.JPEG").write_text("")
    assert prepare.main(_flags(source, tmp_path / "data", "--on_bad=skip")) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    listed = _folder(tmp_path / "data") / "left_out.txt"
    assert line == f"1 unreadable images left out; listed in {listed}"
    assert len(listed.read_text().splitlines()) == 1


def test_refuses_a_disk_that_is_too_full(source, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 500_000})
    monkeypatch.setattr(prepare.shutil, "disk_usage", lambda path: usage)
    message = _error(*_flags(source, tmp_path / "data"))
    assert "has 500kB free, but about 756kB are needed; free disk space" in message
    assert not _folder(tmp_path / "data").exists()


def test_finished_shards_need_no_more_room(source, tmp_path, monkeypatch, capsys, small_shards):
    update = prepare.tqdm.update
    monkeypatch.setattr(prepare.tqdm, "update", _interrupt_after(3))
    assert prepare.main(_flags(source, tmp_path / "data")) == 130
    assert "interrupted; rerun the command to resume" in capsys.readouterr().out
    monkeypatch.setattr(prepare.tqdm, "update", update)
    assert prepare.main(_flags(source, tmp_path / "data")) == 0
    assert "3 of 6 shards are finished already" in capsys.readouterr().out


def _interrupt_after(count):
    calls = []

    def update(bar, images):
        calls.append(images)
        if len(calls) == count:
            raise KeyboardInterrupt

    return update


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["imagenet"], "the following arguments are required: --source"),
        (["imagent", "--source=."], "invalid choice: 'imagent'"),
        (["imagenet", "--source=.", "--config=half"], "invalid choice: 'half'"),
        (["imagenet", "--source=.", "--workers=0"], "--workers=0 must be at least 1"),
        (["imagenet", "--source=.", "--on_bad=ignore"], "invalid choice: 'ignore'"),
        (["imagenet", "--source=.", "--data_dir=gs://b/d"], "is not on this machine"),
    ],
)
def test_bad_flags(flags, message):
    assert message in _error(*flags)


def test_a_bad_source_leaves_nothing(tmp_path):
    assert "has no training images; put" in _error(*_flags(tmp_path / "none", tmp_path / "data"))
    assert not list((tmp_path / "data").rglob("incomplete*"))


def _interrupted(name, source, data_dir) -> tuple[subprocess.CompletedProcess, list[int]]:
    """Runs `INTERRUPTED` with two workers; returns the result and the pids of the workers."""
    command = [sys.executable, "-c", INTERRUPTED, name, *_flags(source, data_dir, "--workers=2")]
    result = subprocess.run(command, capture_output=True, text=True, start_new_session=True)
    workers = next(line for line in result.stdout.splitlines() if line.startswith("["))
    return result, json.loads(workers)


def _ends(pid: int) -> bool:
    """Whether a process ends within ten seconds; zombies, which nobody reaps, count as ended."""
    for _ in range(100):
        try:
            if pathlib.Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.1)
    return False


@pytest.fixture
def larger_source(tmp_path) -> pathlib.Path:
    """A source with 48 training images, which are 12 small shards."""
    return write_imagenet(tmp_path / "larger", train=16)


@pytest.mark.slow
def test_killed_it_leaves_nothing_that_looks_finished_and_goes_on(
    larger_source, tmp_path, small_shards
):
    data_dir = tmp_path / "data"
    result, workers = _interrupted("SIGKILL", larger_source, data_dir)
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert len(workers) == 2
    assert all(map(_ends, workers))
    with pytest.raises(UserError, match="finish it with: python -m"):
        open_prepared("imagenet256", data_dir)
    work = _folder(data_dir).with_name("incomplete.1.0.0")
    shard_of = {note.name.removesuffix(".json") for note in (work / "done").glob("*.json")}
    finished = {name: (work / "data" / name).stat() for name in shard_of}
    assert 3 <= len(finished) < 14
    assert prepare.main(_flags(larger_source, data_dir)) == 0
    for name, before in finished.items():
        after = (_folder(data_dir) / name).stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert prepare.main(_flags(larger_source, tmp_path / "undisturbed")) == 0
    assert _contents(_folder(data_dir)) == _contents(_folder(tmp_path / "undisturbed"))


@pytest.mark.slow
def test_ctrl_c_in_the_terminal_ends_workers_quietly(larger_source, tmp_path):
    result, workers = _interrupted("SIGINT", larger_source, tmp_path / "data")
    assert result.returncode == 130
    assert "interrupted; rerun the command to resume" in result.stdout
    assert "Traceback" not in result.stderr
    assert all(map(_ends, workers))
    assert not _folder(tmp_path / "data").exists()


def test_a_log_has_lines_and_no_carriage_returns(source, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prepare, "SECONDS_A_LINE", 0.0)
    monkeypatch.setattr(preparation, "_IMAGES_PER_SHARD", 8)
    assert prepare.main(_flags(source, tmp_path / "data")) == 0
    out, err = capsys.readouterr()
    assert "\r" not in out
    assert err == ""
    progress = [line for line in out.splitlines() if " images after 00:0" in line]
    assert len(progress) == 3  # one for each shard
    assert progress[-1].startswith("21 of 21 images after 00:0")


def test_what_is_left_out_is_counted(source, tmp_path, capsys):
    (source / "train" / WNIDS[0] / f"._{WNIDS[0]}_0.JPEG").write_text("")
    (source / "val" / WNIDS[0] / "notes.txt").write_text("")
    prepare.main(_flags(source, tmp_path / "data"))
    assert capsys.readouterr().out.splitlines()[2] == "left out: hidden images (1), .txt files (1)"


def test_names_that_are_not_utf_8_are_prepared(source, tmp_path):
    folder = os.fsencode(source / "train" / WNIDS[0])
    os.rename(folder + b"/%s_0.JPEG" % WNIDS[0].encode(), folder + b"/caf\xe9.JPEG")
    with open(folder + b"/caf\xe8.JPEG", "wb"):
        pass
    assert prepare.main(_flags(source, tmp_path / "data", "--on_bad=skip")) == 0
    records = open_prepared("imagenet256", tmp_path / "data").as_data_source("train")
    assert b"caf\xe9.JPEG" in {record["file_name"] for record in records}
    assert b"caf\xe8.JPEG" in (_folder(tmp_path / "data") / "left_out.txt").read_bytes()


CLOSED = """
import os, sys
from multipath_jax import prepare
from multipath_jax.utils import cli
read, write = os.pipe()
os.dup2(write, 1)
os.close(read)
del sys.argv[0]
sys.argv.insert(0, "prepare")
cli.run(prepare.main)
"""


@pytest.mark.slow
def test_the_work_goes_on_when_nobody_reads_what_it_says(source, tmp_path):
    command = [sys.executable, "-c", CLOSED, *_flags(source, tmp_path / "data")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert _folder(tmp_path / "data").exists()


def test_a_disk_that_fails_is_one_line(source, tmp_path, monkeypatch):
    def fail(path):
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(prepare.shutil, "disk_usage", fail)
    message = _error(*_flags(source, tmp_path / "data"))
    assert message.startswith(f"{tmp_path / 'data'}: Input/output error; fix that")


def test_without_a_home_folder(source, monkeypatch):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert "there is no such home folder" in _error(*_flags(source, "~/data"))
    assert "there is no such home folder" in _error(*_flags("~/source", "data"))


def test_no_images_are_one_line(tmp_path):
    said = _error(*_flags(tmp_path, tmp_path / "data"))
    assert said.startswith(f"{tmp_path} has no training images; put")
