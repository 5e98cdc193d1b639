"""Exclusive use of a workdir by one run."""

import contextlib
import json
import os
import pathlib
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import filelock
from etils import epath

from multipath_jax.errors import Failure, UserError
from multipath_jax.utils import filesystem, storage
from multipath_jax.utils.filesystem import is_address

LOCK_FILE = ".lock"
CLAIM_FILE = ".claim"
# Seconds: the interval at which the claim on a workdir in a bucket is renewed, the time without a
# renewal after which its run is considered dead, and the time in which two runs that take the
# workdir over at once notice each other.
RENEWAL, STALE, SETTLING = 20.0, 100.0, 2.0


def lock(path: str | os.PathLike) -> filelock.BaseFileLock:
    """A lock file, as a context manager; entering it raises Timeout, an OSError, if it is locked.

    The operating system releases the lock when the process ends. There is no fallback to a lock by
    the existence of the file, which would remain after a kill.
    """
    return filelock.FileLock(path, timeout=0, thread_local=False, fallback_to_soft=False)


@contextlib.contextmanager
def claimed(workdir: epath.Path, say: Callable[[str], None]) -> Iterator[None]:
    """Context manager: creates a workdir if necessary, and reserves it for this run.

    A folder is reserved by a lock on the file ``.lock``; in a bucket, which has no locks, by the
    object ``.claim`` (`Claim`).

    Args:
      workdir: the workdir.
      say: prints a line if waiting is necessary.

    Raises:
      UserError: another run uses the workdir, or it cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            storage.make(workdir)
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
    """Locks a folder and writes the owner into the lock file."""
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
    """Context manager: the object ``.claim`` of a workdir in a bucket, which names its owner.

    It is created when the run starts, renewed every `RENEWAL` seconds, and deleted at the end. A
    run that finds a claim watches it. If it is renewed, the run is refused. If it is not renewed
    for `STALE` seconds, its owner is considered dead and the claim is taken over; at once if the
    owner was a process on this machine that has ended. No clocks are compared. An owner that could
    not reach the bucket for so long notices this before its next write, and fails.
    """

    def __init__(self, workdir: epath.Path, say: Callable[[str], None]):
        self._workdir, self._path, self._say = workdir, workdir / CLAIM_FILE, say
        self._run = uuid.uuid4().hex
        self._renewed, self._taken_by = time.monotonic(), ""
        self._ended, self._turn = threading.Event(), threading.Lock()

    def __enter__(self) -> "Claim":
        """Acquires the claim. Raises UserError if another run has it, and OSError."""
        self._acquire()
        self._thread = threading.Thread(target=self._keep_renewing, daemon=True)
        self._thread.start()
        storage.guards[os.fspath(self._workdir)] = self.check
        return self

    def __exit__(self, *_: object) -> None:
        del storage.guards[os.fspath(self._workdir)]
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(OSError):  # the claim then becomes stale
            if (self._read() or {}).get("run") == self._run:
                with storage.bucket(self._path) as (files, key):
                    files.rm_file(key)

    def check(self) -> None:
        """Raises Failure if another run has taken over; OSError if the claim cannot be read."""
        if time.monotonic() - self._renewed > STALE / 2:
            self._renew()
        if self._taken_by:
            raise Failure(
                f"workdir {self._workdir} was taken over by {self._taken_by} while this run could "
                "not reach it; this one ends here, and leaves it alone"
            )

    def _acquire(self) -> None:
        with storage.bucket(self._path) as (files, key), contextlib.suppress(FileExistsError):
            files.pipe_file(key, self._content(), mode="create")
            return
        found = self._read()
        if not _is_dead(found):
            self._say(
                f"{_owner(found)} has or had {self._workdir}; waiting up to {STALE:.0f} s to see "
                "whether it still lives"
            )
            self._watch(found)
        with storage.bucket(self._path) as (files, key):
            files.pipe_file(key, self._content())
        time.sleep(SETTLING)
        if (now := self._read() or {}).get("run") != self._run:
            raise _in_use(self._workdir, _owner(now))

    def _watch(self, found: dict[str, Any]) -> None:
        """Waits until the claim is stale or deleted. Raises UserError if it is renewed."""
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
            with contextlib.suppress(OSError):  # tried again; `check` tests the time since the last
                self._renew()

    def _renew(self) -> None:
        with self._turn:
            found = self._read() or {}
            if found.get("run") != self._run:
                self._taken_by = _owner(found)
                return
            with storage.bucket(self._path) as (files, key):
                files.pipe_file(key, self._content())
            self._renewed = time.monotonic()

    def _content(self) -> bytes:
        now = time.strftime("%Y-%m-%d %H:%M:%S %z")
        owner = {"process": os.getpid(), "host": socket.gethostname(), "machine": _machine()}
        # Each content is different, also within a second.
        renewed = {"renewed": now, "nanoseconds": time.time_ns()}
        return json.dumps(owner | {"run": self._run} | renewed).encode()

    def _read(self) -> dict[str, Any] | None:
        """The content of the object; None if there is none."""
        try:
            found = json.loads(storage.read(self._path))
        except FileNotFoundError:
            return None
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}


def _owner(found: dict[str, Any] | None) -> str:
    found = found or {}
    if "process" not in found:
        return "another run"
    when = f", whose claim is of {found['renewed']}" if "renewed" in found else ""
    return f"process {found['process']} on {found.get('host')}{when}"


def _is_dead(found: dict[str, Any] | None) -> bool:
    """Whether there is no owner, or it was a process on this machine that has ended."""
    if found is None:
        return True
    machine = _machine()
    if machine is None or found.get("machine") != machine:
        return False
    return not os.path.exists(f"/proc/{found.get('process')}")


def _machine() -> str | None:
    """Identifies the boot and the namespace of process IDs; None if they are unknown."""
    try:
        started = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{started} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None
