"""Files in folders and buckets: atomic writes, claims, and local copies of checkpoints."""

import fcntl
import json
import os
import pathlib
import time

import buckets
import fsspec
import pytest
from etils import epath

from multipath_jax.checkpoints import working_copy
from multipath_jax.checkpoints.working_copy import stored_steps
from multipath_jax.errors import Failure, UserError
from multipath_jax.utils import claims, storage


@pytest.fixture(params=["local", "gs", "s3"])
def folder(request, bucket, tmp_path):
    """A local folder, or the address of a folder in a bucket."""
    if request.param == "local":
        (tmp_path / "here").mkdir()
        return epath.Path(tmp_path / "here")
    return epath.Path(f"{request.param}://bucket/there")


def test_files_are_the_same_everywhere(folder):
    path = folder / "a.txt"
    assert not storage.exists(path)
    with pytest.raises(FileNotFoundError):
        storage.read(path)
    storage.write(path, b"one\n")
    storage.append(path, b"two\n")
    storage.append(folder / "new.txt", b"three\n")
    growing = storage.Growing(path)
    growing.write("four\n")
    assert storage.read(path) == b"one\ntwo\nfour\n"  # while the file is open
    growing.write("\ud800 is no character\n")
    growing.close()
    assert storage.read(path).endswith(b"four\n\\ud800 is no character\n")
    assert storage.names(folder) == ["a.txt", "new.txt"]
    assert storage.names(folder / "none") == storage.names(path) == []
    assert storage.is_file(path)
    assert not storage.is_file(folder)


def test_files_and_folders_move(folder):
    for name in ("b/1.txt", "b/c/2.txt"):
        storage.make((folder / name).parent)
        storage.write(folder / name, name.encode())
    assert storage.names(folder / "b") == ["1.txt", "c"]
    storage.make(folder / "d")
    storage.move(folder / "b", folder / "d" / "b")
    storage.move(folder / "d" / "b" / "1.txt", folder / "1.txt")
    assert storage.names(folder) == ["1.txt", "d"]
    assert storage.read(folder / "d" / "b" / "c" / "2.txt") == b"b/c/2.txt"


def test_what_others_write_is_seen(bucket):
    storage.write(f"{bucket}/run/1", b"")
    assert storage.names(f"{bucket}/run") == ["1"]
    (pathlib.Path(os.environ[buckets.ROOT]) / "bucket" / "run%2F2").touch()
    assert storage.names(f"{bucket}/run") == ["1", "2"]


def test_whole_files_and_filled_folders_arrive(folder):
    with storage.replacing(folder / "a.png") as new:
        assert new.suffix == ".png"
        new.write_bytes(b"picture")
    assert storage.read(folder / "a.png") == b"picture"
    unfinished = storage.replacing(folder / "a.png")
    unfinished.__enter__().write_bytes(b"half")
    assert not unfinished.__exit__(ValueError, ValueError(), None)
    assert storage.read(folder / "a.png") == b"picture"
    with storage.filled(folder / "profile") as local:
        (epath.Path(local) / "x").mkdir(parents=True)
        (epath.Path(local) / "x" / "trace").write_text("trace")
    assert storage.read(folder / "profile" / "x" / "trace") == b"trace"


def test_the_services_own_errors_are_like_those_of_files(bucket, monkeypatch):
    class Refused(Exception):
        pass

    def refuse(*_, **__):
        raise Refused("403 Forbidden")

    monkeypatch.setattr("buckets.Buckets.pipe_file", refuse)
    with pytest.raises(OSError, match="Refused: 403 Forbidden"):
        storage.write(f"{bucket}/x", b"")
    message = r"workdir gs://bucket/run cannot be written \(Refused: 403 Forbidden\)"
    with (
        pytest.raises(UserError, match=message),
        claims.claimed(epath.Path(f"{bucket}/run"), print),
    ):
        pass


# Claims


@pytest.fixture
def quick(monkeypatch):
    for name, seconds in (("RENEWAL", 0.05), ("STALE", 1.0), ("SETTLING", 0.05)):
        monkeypatch.setattr(claims, name, seconds)


@pytest.fixture
def run(bucket):
    return epath.Path(f"{bucket}/run")


def claim_of(run):
    return json.loads(storage.read(run / claims.CLAIM_FILE))


def leave_a_claim(run, **changes):
    """Leaves a claim, with changes, as that of a run which has just been killed."""
    with claims.claimed(run, print):
        found = claim_of(run)
    storage.write(run / claims.CLAIM_FILE, json.dumps(found | changes).encode())


@pytest.mark.usefixtures("quick")
def test_a_living_claim_is_seen_and_goes_with_its_run(run):
    with claims.claimed(run, print):
        owner = rf"in use by process {claim_of(run)['process']} on .*end that run first"
        with pytest.raises(UserError, match=owner), claims.claimed(run, print):
            pass
        first = claim_of(run)
        time.sleep(0.3)  # six renewals
        assert claim_of(run) != first
        assert claim_of(run)["run"] == first["run"]
    assert not storage.exists(run / claims.CLAIM_FILE)
    with claims.claimed(run, print):
        pass


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("changes", "waits"),
    [({"process": 2**22 + 1}, False), ({"machine": "another"}, True), ({"process": 1}, True)],
)
def test_a_dead_claim_is_taken_over(run, changes, waits):
    leave_a_claim(run, **changes)
    said = []
    with claims.claimed(run, said.append):
        assert claim_of(run)["run"] != ""
    assert bool(said) == waits
    assert all("waiting up to 1 s to see whether it still lives" in line for line in said)


@pytest.mark.usefixtures("quick")
def test_a_claim_that_is_no_json_is_one_all_the_same(run):
    storage.write(run / claims.CLAIM_FILE, b"{")
    said = []
    with claims.claimed(run, said.append):
        pass
    assert "another run has or had gs://bucket/run" in said[0]


@pytest.mark.usefixtures("quick")
def test_a_run_whose_claim_was_taken_writes_no_more(run):
    with claims.claimed(run, print):
        storage.write(run / "metrics.jsonl", b"1")
        taken = claim_of(run) | {"run": "another", "host": "elsewhere"}
        with fsspec.open(f"{run}/{claims.CLAIM_FILE}", "wb") as file:
            file.write(json.dumps(taken).encode())
        time.sleep(0.3)  # six renewals
        with pytest.raises(Failure, match=r"was taken over by process .* on elsewhere"):
            storage.write(run / "metrics.jsonl", b"2")
        with pytest.raises(Failure, match="was taken over"):
            storage.move(run / "metrics.jsonl", run / "moved")
    assert storage.read(run / "metrics.jsonl") == b"1"
    assert claim_of(run)["run"] == "another"


@pytest.mark.usefixtures("quick")
def test_a_claim_not_renewed_for_long_is_looked_at_before_anything_is_written(run, monkeypatch):
    with claims.claimed(run, print):
        (check,) = storage.guards.values()
        claim = check.__self__
        claim._ended.set()  # as if the thread had been too slow to renew the claim
        claim._thread.join()
        with fsspec.open(f"{run}/{claims.CLAIM_FILE}", "wb") as file:
            file.write(b'{"run": "another"}')
        claim._renewed -= claims.STALE
        with pytest.raises(Failure, match="was taken over by another run"):
            storage.write(run / "x", b"")


# Checkpoints


def test_a_checkpoint_is_one_when_its_marker_is_there_which_comes_last(run, monkeypatch):
    copy = working_copy.working_copy(run / "checkpoints", first=True, read_only=False)
    for name in ("weights/d/1", "weights/commit_success.txt", "commit_success.txt", "_META"):
        path = copy.folder / "7" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    put, order = fsspec.get_filesystem_class("gs").put_file, []
    monkeypatch.setattr(
        "buckets.Buckets.put_file",
        lambda self, here, there, **_: (order.append(there), put(self, here, there))[1],
    )
    assert stored_steps(run / "checkpoints") == []
    copy.publish()
    assert stored_steps(run / "checkpoints") == [7]
    assert order[-1] == "bucket/run/checkpoints/7/commit_success.txt"
    copy.close()
    assert not copy.folder.exists()
    other = working_copy.working_copy(run / "checkpoints", first=False, read_only=True)
    assert not (other.folder / "7/weights/d").exists()  # arrays are downloaded on demand
    other.fetch(7)
    assert (other.folder / "7/weights/d/1").read_text() == "weights/d/1"
    other.close()


def test_what_a_killed_process_left_on_this_machine_goes(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dead, living = tmp_path / "multipath_jax-dead", tmp_path / "multipath_jax-living"
    for folder in (dead, living):
        (folder / "7").mkdir(parents=True)
        (tmp_path / f"{folder.name}.lock").touch()
    with open(tmp_path / "multipath_jax-living.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder, remove = working_copy._scratch()
        assert not dead.exists()
        assert (living / "7").exists()
        assert folder.stat().mode & 0o777 == 0o700
        remove()
    assert sorted(path.name for path in tmp_path.iterdir()) == [living.name, f"{living.name}.lock"]
