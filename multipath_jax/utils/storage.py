"""Files and folders on this machine or in a bucket, by the same functions.

In a bucket (gs://, s3:// and others, through fsspec), files are objects, which can be read and
written as a whole, but neither appended to nor renamed; a folder is a common prefix of names.
"""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator

import fsspec
from etils import epath

from multipath_jax.errors import Failure, UserError
from multipath_jax.utils import filesystem
from multipath_jax.utils.filesystem import is_address

# The object that is written last into a checkpoint, by Orbax's name: without it, the checkpoint is
# incomplete.
MARKER = "commit_success.txt"
SCRATCH = "multipath_jax-"  # prefix of temporary folders

# Functions that are called before anything below a folder in a bucket is written, by folder. They
# raise `Failure` or `OSError` if it must not be written (see `claims.Claim`).
guards: dict[str, Callable[[], None]] = {}


# --- Files ---------------------------------------------------------------------------------------


def read(path: str | os.PathLike) -> bytes:
    """Reads a file. Raises OSError; FileNotFoundError if there is none."""
    if not is_address(path):
        return pathlib.Path(path).read_bytes()
    with bucket(path) as (files, key):
        return files.cat_file(key)


def write(path: str | os.PathLike, content: bytes) -> None:
    """Writes or replaces a file atomically. Raises OSError."""
    if not is_address(path):
        with filesystem.whole(path) as new:
            new.write_bytes(content)
        return
    check_guards(path)
    with bucket(path) as (files, key):
        files.pipe_file(key, content)


def append(path: str | os.PathLike, content: bytes) -> None:
    """Appends to a file, which is created if necessary. Raises OSError."""
    if not is_address(path):
        with open(path, "ab") as file:
            file.write(content)
    elif content:
        write(path, (read(path) if exists(path) else b"") + content)


class Growing:
    """A text file for appending, which is up to date after every call of `write`.

    In a bucket the whole file is written each time, from memory; for logs this is some hundred
    kilobytes.
    """

    def __init__(self, path: str | os.PathLike):
        """Opens the file for appending. Raises OSError."""
        self._path, self._file, self._content = path, None, b""
        if is_address(path):
            self._content = read(path) if exists(path) else b""
        else:
            self._file = open(path, "a", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115

    def write(self, text: str) -> None:
        """Appends lines. Raises OSError; in a bucket, the next call then tries again."""
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
    """As `filesystem.replacing`, also for files in buckets.

    Raises:
      Failure: the file could not be written; an existing file is kept.
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


# --- Folders -------------------------------------------------------------------------------------


def exists(path: str | os.PathLike) -> bool:
    """Whether there is a file or a folder with this path."""
    if not is_address(path):
        return os.path.exists(path)
    with bucket(path) as (files, key):
        return files.exists(key)


def is_file(path: str | os.PathLike) -> bool:
    """Whether there is a file with this path."""
    if not is_address(path):
        return os.path.exists(path) and not os.path.isdir(path)
    with bucket(path) as (files, key):
        return files.isfile(key)


def names(folder: str | os.PathLike) -> list[str]:
    """The names in a folder, sorted; none if there is no such folder. Raises OSError."""
    try:
        return contents(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def contents(folder: str | os.PathLike) -> list[str]:
    """The names in a folder, sorted. Raises OSError, also if there is no such folder."""
    if not is_address(folder):
        return sorted(os.listdir(folder))
    with bucket(folder) as (files, key):
        found = [name.rstrip("/") for name in files.ls(key, detail=False)]
    # Web consoles represent a folder by an object with its name.
    return sorted({name.rpartition("/")[2] for name in found if name != key})


def make(folder: str | os.PathLike) -> None:
    """Creates a folder and its parents; in a bucket this is not necessary. Raises OSError."""
    if not is_address(folder):
        os.makedirs(folder, exist_ok=True)


def move(path: str | os.PathLike, target: str | os.PathLike) -> None:
    """Moves a file or a folder to a path that does not exist.

    In a bucket, everything is copied before anything is deleted, so that nothing is lost if the
    process is killed meanwhile.

    Raises:
      OSError: it cannot be moved.
    """
    if not is_address(path):
        os.rename(path, target)
        return
    check_guards(path)
    with bucket(path) as (files, key), bucket(target) as (_, target_key):
        found = marker_last(files.find(key))
        for name in found:
            files.cp_file(name, target_key + name.removeprefix(key))
        for name in reversed(found):
            files.rm_file(name)


@contextlib.contextmanager
def filled(folder: str | os.PathLike) -> Iterator[str]:
    """Context manager: yields a local folder, whose content is in ``folder`` at the end.

    Raises:
      Failure: the content could not be written.
    """
    if not is_address(folder):
        yield os.fspath(folder)
        return
    with tempfile.TemporaryDirectory(prefix=SCRATCH) as local:
        yield local
        try:
            check_guards(folder)
            with bucket(folder) as (files, key):
                upload(files, local, files_in(local), key)
        except OSError as error:
            raise Failure(f"{folder} could not be written ({filesystem.reason(error)})") from error


# --- Buckets -------------------------------------------------------------------------------------


def check_guards(path: str | os.PathLike) -> None:
    """Calls the guards of the folders above a path. Raises what they raise."""
    for folder, guard in list(guards.items()):
        if os.fspath(path).startswith(f"{folder}/"):
            guard()


@contextlib.contextmanager
def bucket(path: str | os.PathLike) -> Iterator[tuple[fsspec.AbstractFileSystem, str]]:
    """Context manager: yields the file system of an address, and the address without its scheme.

    Within the context, exceptions of the services, which have many types, are raised as OSError.
    """
    kind, _, key = os.fspath(path).partition("://")
    try:
        # A cached listing would not show what others write to the bucket.
        yield fsspec.filesystem(kind, use_listings_cache=False), key.rstrip("/")
    except (OSError, Failure, UserError):
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def files_in(folder: str | os.PathLike) -> list[str]:
    """The names of all files below a local folder, the marker last."""
    found = (path for path in pathlib.Path(folder).rglob("*") if path.is_file())
    return marker_last([path.relative_to(folder).as_posix() for path in found])


def marker_last(found: list[str]) -> list[str]:
    """Sorts names so that a checkpoint's marker is last; its items have markers, too."""
    return sorted(
        found, key=lambda name: (os.path.basename(name) == MARKER, -name.count("/"), name)
    )


def upload(files: fsspec.AbstractFileSystem, folder: str, found: list[str], key: str) -> None:
    """Uploads files of a folder; a marker only after the others have been found in the bucket."""
    last = found[-1:] if MARKER in found else []
    for part in (found[: len(found) - len(last)], last):
        if not part:
            continue
        files.put([f"{folder}/{name}" for name in part], [f"{key}/{name}" for name in part])
        there = files.find(key, detail=True)
        for name in part:
            if there.get(f"{key}/{name}", {}).get("size") != os.path.getsize(f"{folder}/{name}"):
                raise OSError(f"{key}/{name} is not there as it was uploaded")


def unused(path: epath.Path) -> epath.Path:
    """The path, or if it exists, the first of ``path_2``, ``path_3``, ... that does not."""
    number, free = 1, path
    while exists(free):
        number += 1
        free = path.with_name(f"{path.name}_{number}")
    return free
