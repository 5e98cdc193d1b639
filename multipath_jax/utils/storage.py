"""The files of a run, in a folder of this machine or in a bucket: where alone the two differ.

A bucket has objects in place of files. One is written whole or not at all, and read; it is neither
appended to nor renamed, and a folder is no more than how the names of several begin. All is done by
fsspec, which has the same words for gs://, s3:// and others.
"""

import contextlib
import glob
import json
import os
import pathlib
import shutil
import socket
import tempfile
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import filelock
import fsspec
from etils import epath

from multipath_jax.errors import Failure, UserError
from multipath_jax.utils import filesystem
from multipath_jax.utils.filesystem import is_address

LOCK_FILE = ".lock"
CLAIM_FILE = ".claim"
# Seconds: how often the claim on a workdir in a bucket is renewed; after how many without a renewal
# its run is taken for dead; and in which two runs that take it over see each other.
RENEWAL, STALE, SETTLING = 20.0, 100.0, 2.0
# The last object of a checkpoint, by Orbax's own name: without it, it is not whole.
MARKER = "commit_success.txt"
NUMBERS = "d"  # the folder of a checkpoint's item that has TensorStore's data, nearly all of it
SCRATCH = "multipath_jax-"  # how the names of temporary folders begin


# Single files


def read(path: str | os.PathLike) -> bytes:
    """The whole of a file. Raises OSError; FileNotFoundError where there is none."""
    if not is_address(path):
        return pathlib.Path(path).read_bytes()
    with _bucket(path) as (files, key):
        return files.cat_file(key)


def write(path: str | os.PathLike, content: bytes) -> None:
    """Writes a file, or writes it anew: whole or not at all. Raises OSError."""
    if not is_address(path):
        with filesystem.whole(path) as new:
            new.write_bytes(content)
        return
    _check_claims(path)
    with _bucket(path) as (files, key):
        files.pipe_file(key, content)


def append(path: str | os.PathLike, content: bytes) -> None:
    """Writes to the end of a file, which may not be there yet. Raises OSError."""
    if not is_address(path):
        with open(path, "ab") as file:
            file.write(content)
    elif content:
        write(path, (read(path) if exists(path) else b"") + content)


class Growing:
    """A text file that grows: what was written outlives this process, however that ends.

    In a bucket it is written anew each time, from memory: with a line for every log of a run that
    is some hundreds of kilobytes in the end.
    """

    def __init__(self, path: str | os.PathLike):
        """Opens the file to append. Raises OSError."""
        self._path, self._file, self._content = path, None, b""
        if is_address(path):
            self._content = read(path) if exists(path) else b""
        else:
            self._file = open(path, "a", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115

    def write(self, text: str) -> None:
        """Appends lines. Raises OSError; a later call then writes them again, if in a bucket."""
        if self._file is not None:
            self._file.write(text)
            self._file.flush()
        else:
            self._content += text.encode("utf-8", "backslashreplace")
            write(self._path, self._content)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


@contextlib.contextmanager
def replacing(target: str | os.PathLike) -> Iterator[pathlib.Path]:
    """As `filesystem.replacing`, for files in buckets too.

    Raises:
      Failure: it could not be written; the file that was there before is kept.
    """
    if not is_address(target):
        with filesystem.replacing(target) as new:
            yield new
        return
    with tempfile.TemporaryDirectory(prefix=SCRATCH) as folder:
        new = pathlib.Path(folder) / os.path.basename(target)
        yield new
        try:
            write(target, new.read_bytes())
        except OSError as error:
            raise Failure(f"{target} could not be written ({filesystem.reason(error)})") from error


# Folders


def exists(path: str | os.PathLike) -> bool:
    """Whether there is a file or a folder of that name."""
    if not is_address(path):
        return os.path.exists(path)
    with _bucket(path) as (files, key):
        return files.exists(key)


def is_file(path: str | os.PathLike) -> bool:
    """Whether there is something of that name that is no folder."""
    if not is_address(path):
        return os.path.exists(path) and not os.path.isdir(path)
    with _bucket(path) as (files, key):
        return files.isfile(key)


def names(folder: str | os.PathLike) -> list[str]:
    """Of what lies in a folder; none if there is none. Raises OSError."""
    try:
        return contents(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def contents(folder: str | os.PathLike) -> list[str]:
    """The names of what lies in a folder. Raises OSError, also if there is no such folder."""
    if not is_address(folder):
        return sorted(os.listdir(folder))
    with _bucket(folder) as (files, key):
        found = [name.rstrip("/") for name in files.ls(key, detail=False)]
    # An object of the folder's own name may stand for it, as web consoles make them.
    return sorted({name.rpartition("/")[2] for name in found if name != key})


def make(folder: str | os.PathLike) -> None:
    """Makes a folder and those above it; in a bucket there is nothing to make. Raises OSError."""
    if not is_address(folder):
        os.makedirs(folder, exist_ok=True)


def move(path: str | os.PathLike, target: str | os.PathLike) -> None:
    """Moves a file or a folder to a name that nothing has.

    In a bucket all is copied before anything is deleted: a kill meanwhile loses nothing.

    Raises:
      OSError: it cannot be moved.
    """
    if not is_address(path):
        os.rename(path, target)
        return
    _check_claims(path)
    with _bucket(path) as (files, key), _bucket(target) as (_, target_key):
        found = _marker_last(files.find(key))
        for name in found:
            files.cp_file(name, target_key + name.removeprefix(key))
        for name in reversed(found):
            files.rm_file(name)


@contextlib.contextmanager
def filled(folder: str | os.PathLike) -> Iterator[str]:
    """A folder of this machine; what is written there is in ``folder`` in the end.

    Raises:
      Failure: it could not be written.
    """
    if not is_address(folder):
        yield os.fspath(folder)
        return
    with tempfile.TemporaryDirectory(prefix=SCRATCH) as local:
        yield local
        try:
            _check_claims(folder)
            with _bucket(folder) as (files, key):
                _upload(files, local, _files_in(local), key)
        except OSError as error:
            raise Failure(f"{folder} could not be written ({filesystem.reason(error)})") from error


# Checkpoints


class Folder(epath.gpath.PosixGPath):
    """A path whose characters are its own: etils reads ``[x]`` in it as a pattern, in `glob`."""

    def glob(self, pattern: str) -> Iterator["Folder"]:
        return map(Folder, epath.Path(glob.escape(os.fspath(self))).glob(pattern))


def steps(folder: str | os.PathLike) -> list[int]:
    """The steps of the checkpoints in a folder, whatever may be wrong with them. Raises OSError."""
    if not is_address(folder):
        return sorted(int(name) for name in names(folder) if name.isdecimal())
    return sorted(step for step, found in _checkpoints(folder).items() if MARKER in found)


def _checkpoints(folder: str | os.PathLike) -> dict[int, dict[str, int]]:
    """Of each step in a folder of a bucket, the names of its objects and their bytes."""
    found: dict[int, dict[str, int]] = {}
    with _bucket(folder) as (files, key):
        for name, about in files.find(key, detail=True).items():
            step, _, rest = name.removeprefix(key).strip("/").partition("/")
            if step.isdecimal() and rest:
                found.setdefault(int(step), {})[rest] = about["size"]
    return found


class InPlace:
    """A folder of checkpoints on this machine: Orbax works in it.

    Attributes:
      folder: where Orbax works.
      shared: whether all processes work there together.
    """

    shared = True

    def __init__(self, folder: epath.Path, first: bool, read_only: bool):
        """``first``: whether this process writes; of several, the first does."""
        self.folder, self._first = Folder(folder), first
        if first and not read_only:
            make(folder)

    def fetch(self, step: int) -> None:
        """All of a checkpoint is in ``folder`` once this returns. Raises OSError."""

    def publish(self) -> None:
        """What is in ``folder`` is where it belongs once this returns. Raises OSError."""

    def put_aside(self, step: int, target: epath.Path) -> None:
        """Moves a checkpoint to another place. Raises OSError."""
        if self._first:
            move(self.folder / str(step), target)

    def close(self) -> None:
        """Ends the use of ``folder``."""


class Copied:
    """A folder of this machine in which Orbax works, for one of checkpoints in a bucket.

    Of itself Orbax writes the numbers to gs:// by TensorStore's driver, the rest by etils, and
    deletes by a third library, each with credentials, retries and lists of its own; to s3:// and
    others it cannot write at all. So it writes to this machine, as it does for local runs, and a
    checkpoint that is whole there is uploaded as whole objects, its `MARKER` the last. Of several
    processes each reads in a folder of its own, and the first writes.

    Small files of all checkpoints are downloaded at once, the numbers when they are asked for.
    """

    shared = False

    def __init__(self, address: epath.Path, first: bool, read_only: bool):
        """Raises OSError; FileNotFoundError if a checkpoint is deleted meanwhile."""
        self._address, self._writes = address, first and not read_only
        self.folder, self.close = _scratch()
        found = _checkpoints(address)
        self._known = {step: objects for step, objects in found.items() if MARKER in objects}
        self._download(
            f"{step}/{name}"
            for step, objects in self._known.items()
            for name in objects
            if NUMBERS not in name.split("/")[:-1]
        )

    def fetch(self, step: int) -> None:
        """As `InPlace.fetch`."""
        self._download(f"{step}/{name}" for name in self._known.get(step, ()))

    def _download(self, names: Iterator[str]) -> None:
        missing = [name for name in names if not (self.folder / name).exists()]
        if missing:
            with _bucket(self._address) as (files, key):
                places = [os.fspath(self.folder / name) for name in missing]
                files.get([f"{key}/{name}" for name in missing], places)

    def publish(self) -> None:
        """Uploads the checkpoints that are new here, then deletes those that are gone here."""
        if not self._writes:
            return
        _check_claims(self._address)
        here = {int(name) for name in os.listdir(self.folder) if name.isdecimal()}
        for step in sorted(here - self._known.keys()):
            local = self.folder / str(step)
            with _bucket(self._address / str(step)) as (files, key):
                _upload(files, os.fspath(local), _files_in(local), key)
            self._known[step] = {}  # all of it is here
        if gone := self._known.keys() - here:
            self._delete(gone)
        self._known = {step: self._known[step] for step in here}

    def _delete(self, gone: set[int]) -> None:
        """Deletes these, and what is not whole, of a run that was killed in an upload."""
        for step, objects in _checkpoints(self._address).items():
            if step in gone or MARKER not in objects:
                with _bucket(self._address / str(step)) as (files, key):
                    for name in reversed(_marker_last(list(objects))):
                        files.rm_file(f"{key}/{name}")

    def put_aside(self, step: int, target: epath.Path) -> None:
        """As `InPlace.put_aside`."""
        if self._writes:
            move(self._address / str(step), target)
        self._known.pop(step)
        (self.folder / str(step)).rmtree()


def working_copy(folder: epath.Path, first: bool, read_only: bool) -> InPlace | Copied:
    """Where Orbax works on the checkpoints of a folder; to be closed in the end. Raises OSError."""
    return (Copied if is_address(folder) else InPlace)(folder, first, read_only)


def _scratch() -> tuple[Folder, Callable[[], None]]:
    """A folder of this process's own, and what removes it.

    It is locked as long as the process lives: what killed ones have left is removed here.
    """
    parent = pathlib.Path(tempfile.gettempdir())
    for path in parent.glob(f"{SCRATCH}*.lock"):
        with contextlib.suppress(OSError), lock(path):  # in use, or somebody's
            shutil.rmtree(path.with_suffix(""), ignore_errors=True)
            path.unlink()
    folder = Folder(parent / f"{SCRATCH}{uuid.uuid4().hex}")
    own = lock(f"{folder}.lock")
    own.acquire()
    folder.mkdir(mode=0o700)
    return folder, weakref.finalize(folder, _remove, os.fspath(folder), own)


def _remove(folder: str, own: filelock.BaseFileLock) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        os.unlink(own.lock_file)
    own.release()


# One run at a time


def lock(path: str | os.PathLike) -> filelock.BaseFileLock:
    """A lock for one process at a time, as a context; to enter it raises OSError, and Timeout, one
    of these, where another process has it.

    The system drops it when the process ends, however that may be: so there is no fallback to a
    file whose existence is the lock.
    """
    return filelock.FileLock(path, timeout=0, thread_local=False, fallback_to_soft=False)


@contextlib.contextmanager
def claimed(workdir: epath.Path, say: Callable[[str], None]) -> Iterator[None]:
    """The workdir, made if need be, for this run alone.

    On this machine the claim is a lock on the file ``.lock``, which the system drops when its
    process ends, however that may be. In a bucket, which knows no locks, it is the object
    ``.claim``: see `Claim`.

    Args:
      say: is told that this takes its time, and why.

    Raises:
      UserError: another run has it, or it cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            make(workdir)
            if is_address(workdir):
                stack.enter_context(Claim(workdir, say))
            else:
                _enter_lock(stack, workdir)
        except OSError as error:
            raise UserError(
                f"workdir {workdir} cannot be written ({filesystem.reason(error)})"
            ) from error
        yield


def _enter_lock(stack: contextlib.ExitStack, workdir: epath.Path) -> None:
    """The file of the lock says who has it."""
    path = pathlib.Path(workdir / LOCK_FILE)
    try:
        stack.enter_context(lock(path))
    except filelock.Timeout as error:
        raise _in_use(workdir, path.read_text().strip() or "another process") from error
    path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")


def _in_use(workdir: epath.Path, owner: str) -> UserError:
    return UserError(
        f"workdir {workdir} is in use by {owner}; end that run first, or use another workdir"
    )


class Claim:
    """The object ``.claim`` of a workdir in a bucket, which says whose it is; a context.

    It is written only where there is none, deleted in the end, and renewed every `RENEWAL` seconds.
    Another run that finds it looks on: where it is renewed, that run is refused. Where it is not
    for `STALE` seconds, its owner is dead, and it is taken over; at once, if the owner was a
    process of this machine that is no more. No clocks are compared. An owner that was cut off from
    the bucket for so long finds the claim taken when it wants to write, and fails instead.
    """

    def __init__(self, workdir: epath.Path, say: Callable[[str], None]):
        self._workdir, self._path, self._say = workdir, workdir / CLAIM_FILE, say
        self._run = uuid.uuid4().hex
        self._renewed, self._taken_by = time.monotonic(), ""
        self._ended, self._turn = threading.Event(), threading.Lock()

    def __enter__(self) -> "Claim":
        """Raises UserError, OSError."""
        self._acquire()
        self._thread = threading.Thread(target=self._keep_renewing, daemon=True)
        self._thread.start()
        _claims[os.fspath(self._workdir)] = self
        return self

    def __exit__(self, *_: object) -> None:
        del _claims[os.fspath(self._workdir)]
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(OSError):  # then it is taken for dead a little later
            if (self._read() or {}).get("run") == self._run:
                with _bucket(self._path) as (files, key):
                    files.rm_file(key)

    def check(self) -> None:
        """Raises Failure if another run has taken the workdir over; OSError if none can know."""
        if time.monotonic() - self._renewed > STALE / 2:
            self._renew()
        if self._taken_by:
            raise Failure(
                f"workdir {self._workdir} was taken over by {self._taken_by} while this run could "
                "not reach it; this one ends here, and leaves it alone"
            )

    def _acquire(self) -> None:
        with _bucket(self._path) as (files, key), contextlib.suppress(FileExistsError):
            files.pipe_file(key, self._content(), mode="create")
            return
        found = self._read()
        if not _is_dead(found):
            self._say(
                f"{_owner(found)} has or had {self._workdir}; waiting up to {STALE:.0f} s to see "
                "whether it still lives"
            )
            self._look_on(found)
        with _bucket(self._path) as (files, key):
            files.pipe_file(key, self._content())
        time.sleep(SETTLING)
        if (now := self._read() or {}).get("run") != self._run:
            raise _in_use(self._workdir, _owner(now))

    def _look_on(self, found: dict[str, Any]) -> None:
        """Returns when the owner is dead or has ended. Raises UserError if it lives."""
        deadline = time.monotonic() + STALE
        while time.monotonic() < deadline:
            time.sleep(RENEWAL / 10)
            now = self._read()
            if now is None:
                return
            if now != found:
                raise _in_use(self._workdir, _owner(now))

    def _keep_renewing(self) -> None:
        while not self._ended.wait(RENEWAL) and not self._taken_by:
            with contextlib.suppress(OSError):  # the next may succeed; `check` looks how long ago
                self._renew()

    def _renew(self) -> None:
        with self._turn:
            found = self._read() or {}
            if found.get("run") != self._run:
                self._taken_by = _owner(found)
                return
            with _bucket(self._path) as (files, key):
                files.pipe_file(key, self._content())
            self._renewed = time.monotonic()

    def _content(self) -> bytes:
        now = time.strftime("%Y-%m-%d %H:%M:%S %z")
        owner = {"process": os.getpid(), "host": socket.gethostname(), "machine": _machine()}
        # Never twice the same: a renewal within one second is one too.
        renewed = {"renewed": now, "nanoseconds": time.time_ns()}
        return json.dumps(owner | {"run": self._run} | renewed).encode()

    def _read(self) -> dict[str, Any] | None:
        """What the object says; None if there is none."""
        try:
            found = json.loads(read(self._path))
        except FileNotFoundError:
            return None
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}


_claims: dict[str, Claim] = {}  # those of this process, by their workdirs


def _check_claims(path: str | os.PathLike) -> None:
    """Before anything is written. Raises as `Claim.check`."""
    for workdir, claim in list(_claims.items()):
        if os.fspath(path).startswith(f"{workdir}/"):
            claim.check()


def _owner(found: dict[str, Any] | None) -> str:
    found = found or {}
    if "process" not in found:
        return "another run"
    when = f", whose claim is of {found['renewed']}" if "renewed" in found else ""
    return f"process {found['process']} on {found.get('host')}{when}"


def _is_dead(found: dict[str, Any] | None) -> bool:
    """Whether there is no owner, or it was a process of this machine that has ended."""
    if found is None:
        return True
    machine = _machine()
    if machine is None or found.get("machine") != machine:
        return False
    return not os.path.exists(f"/proc/{found.get('process')}")


def _machine() -> str | None:
    """What tells where the numbers of processes mean the same: not so in containers (Linux)."""
    try:
        started = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{started} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


# Buckets


@contextlib.contextmanager
def _bucket(path: str | os.PathLike) -> Iterator[tuple[fsspec.AbstractFileSystem, str]]:
    """The file system of an address, and the address without its kind.

    Within, the errors of the services, which are of many types, are OSErrors as those of files are.
    """
    kind, _, key = os.fspath(path).partition("://")
    try:
        # Others write to the bucket too: a list that is kept would hide what they wrote.
        yield fsspec.filesystem(kind, use_listings_cache=False), key.rstrip("/")
    except (OSError, Failure, UserError):
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def _files_in(folder: str | os.PathLike) -> list[str]:
    """The names of all files below a folder of this machine, the marker last."""
    found = (path for path in pathlib.Path(folder).rglob("*") if path.is_file())
    return _marker_last([path.relative_to(folder).as_posix() for path in found])


def _marker_last(found: list[str]) -> list[str]:
    """Sorted so; the items of a checkpoint have such objects too, which come before its own."""
    return sorted(
        found, key=lambda name: (os.path.basename(name) == MARKER, -name.count("/"), name)
    )


def _upload(files: fsspec.AbstractFileSystem, folder: str, found: list[str], key: str) -> None:
    """Uploads these files of a folder; the marker, when the others are seen to be there."""
    last = found[-1:] if MARKER in found else []
    for part in (found[: len(found) - len(last)], last):
        if not part:
            continue
        files.put([f"{folder}/{name}" for name in part], [f"{key}/{name}" for name in part])
        there = files.find(key, detail=True)
        for name in part:
            if there.get(f"{key}/{name}", {}).get("size") != os.path.getsize(f"{folder}/{name}"):
                raise OSError(f"{key}/{name} is not there as it was uploaded")
