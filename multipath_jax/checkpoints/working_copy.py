"""The local folder in which Orbax reads and writes the checkpoints of a workdir."""

import contextlib
import glob
import os
import pathlib
import shutil
import tempfile
import uuid
import weakref
from collections.abc import Callable, Iterator

import filelock
from etils import epath

from multipath_jax.utils import storage
from multipath_jax.utils.claims import lock
from multipath_jax.utils.filesystem import is_address
from multipath_jax.utils.storage import MARKER, SCRATCH

NUMBERS = "d"  # the folder of TensorStore's data in an item, nearly all of its bytes


class Folder(epath.gpath.PosixGPath):
    """A path whose `glob` does not interpret characters such as ``[`` in the path as a pattern."""

    def glob(self, pattern: str) -> Iterator["Folder"]:
        return map(Folder, epath.Path(glob.escape(os.fspath(self))).glob(pattern))


def stored_steps(folder: str | os.PathLike) -> list[int]:
    """The steps of the checkpoints in a folder, also of damaged ones. Raises OSError."""
    if not is_address(folder):
        return sorted(int(name) for name in storage.names(folder) if name.isdecimal())
    return sorted(step for step, found in _checkpoints(folder).items() if MARKER in found)


def _checkpoints(folder: str | os.PathLike) -> dict[int, dict[str, int]]:
    """The names and sizes of the objects of every checkpoint in a bucket, by step."""
    found: dict[int, dict[str, int]] = {}
    with storage.bucket(folder) as (files, key):
        for name, about in files.find(key, detail=True).items():
            step, _, rest = name.removeprefix(key).strip("/").partition("/")
            if step.isdecimal() and rest:
                found.setdefault(int(step), {})[rest] = about["size"]
    return found


class InPlace:
    """A local folder of checkpoints, which Orbax uses directly.

    Attributes:
      folder: the folder that Orbax uses.
      shared: whether all processes use the same folder.
    """

    shared = True

    def __init__(self, folder: epath.Path, first: bool, read_only: bool):
        """Creates the folder.

        Args:
          folder: the folder of the checkpoints.
          first: whether this is process 0, which writes.
          read_only: whether to write nothing.
        """
        self.folder, self._first = Folder(folder), first
        if first and not read_only:
            storage.make(folder)

    def fetch(self, step: int) -> None:
        """Makes sure that all files of a checkpoint are in ``folder``. Raises OSError."""

    def publish(self) -> None:
        """Makes the checkpoints of the run those in ``folder``. Raises OSError."""

    def put_aside(self, step: int, target: epath.Path) -> None:
        """Moves a checkpoint to another path. Raises OSError."""
        if self._first:
            storage.move(self.folder / str(step), target)

    def close(self) -> None:
        """Ends the use of ``folder``."""


class Copied:
    """A temporary local folder for the checkpoints in a bucket; attributes as in `InPlace`.

    Orbax itself writes arrays to gs:// with TensorStore's driver, other files with etils, and
    deletes with a third library, each with its own credentials and retries; it does not support
    s3:// and others. So Orbax works locally, and complete checkpoints are uploaded, with their
    `MARKER` last. With several processes, each reads in its own folder, and process 0 writes.

    The small files of all checkpoints are downloaded at once, and arrays on demand.
    """

    shared = False

    def __init__(self, address: epath.Path, first: bool, read_only: bool):
        """Creates the folder and downloads the small files.

        Args:
          address: the folder of the checkpoints in a bucket.
          first: whether this is process 0, which writes.
          read_only: whether to write nothing.

        Raises:
          OSError: the bucket cannot be read; FileNotFoundError if a checkpoint is being deleted.
        """
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
            with storage.bucket(self._address) as (files, key):
                places = [os.fspath(self.folder / name) for name in missing]
                files.get([f"{key}/{name}" for name in missing], places)

    def publish(self) -> None:
        """Uploads new checkpoints, then deletes those that are no longer in ``folder``."""
        if not self._writes:
            return
        storage.check_guards(self._address)
        here = {int(name) for name in os.listdir(self.folder) if name.isdecimal()}
        for step in sorted(here - self._known.keys()):
            local = self.folder / str(step)
            with storage.bucket(self._address / str(step)) as (files, key):
                storage.upload(files, os.fspath(local), storage.files_in(local), key)
            self._known[step] = {}  # nothing to download
        if gone := self._known.keys() - here:
            self._delete(gone)
        self._known = {step: self._known[step] for step in here}

    def _delete(self, gone: set[int]) -> None:
        """Deletes these checkpoints, and incomplete ones that a killed run has left."""
        for step, objects in _checkpoints(self._address).items():
            if step in gone or MARKER not in objects:
                with storage.bucket(self._address / str(step)) as (files, key):
                    for name in reversed(storage.marker_last(list(objects))):
                        files.rm_file(f"{key}/{name}")

    def put_aside(self, step: int, target: epath.Path) -> None:
        """As `InPlace.put_aside`."""
        if self._writes:
            storage.move(self._address / str(step), target)
        self._known.pop(step)
        (self.folder / str(step)).rmtree()


def working_copy(folder: epath.Path, first: bool, read_only: bool) -> InPlace | Copied:
    """The local folder for the checkpoints in ``folder``; must be closed. Raises OSError."""
    return (Copied if is_address(folder) else InPlace)(folder, first, read_only)


def _scratch() -> tuple[Folder, Callable[[], None]]:
    """Makes a temporary folder, and returns it with a function that removes it.

    It is locked while the process runs. Folders of killed processes, which are not, are removed.
    """
    parent = pathlib.Path(tempfile.gettempdir())
    for path in parent.glob(f"{SCRATCH}*.lock"):
        with contextlib.suppress(OSError), lock(path):  # in use, or of another user
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
