"""Paths from users, and atomic writing of files."""

import contextlib
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator

import fsspec
from etils import epath

from multipath_jax.errors import Failure, UserError

BUCKETS = ("gs", "s3", "az")  # the URL schemes that etils.epath supports, which TFDS and JAX use


def path(name: str, text: str | os.PathLike) -> epath.Path:
    """An absolute path on this machine, or the address of a bucket.

    Args:
      name: the flag or the key of the config that has it, for the error.
      text: as the user wrote it; it may begin with ``~`` or ``~user``.

    Raises:
      UserError: an address of another kind, or one whose package is not installed; a home folder
        that is not known; a link that leads nowhere.
    """
    text = os.fspath(text)
    if not is_address(text):
        return epath.Path(os.path.abspath(local(name, text)))
    kind = text.partition("://")[0]
    if kind not in BUCKETS:
        known = " or ".join(f"{bucket}://" for bucket in BUCKETS)
        raise UserError(
            f"{name}={text}: no access to {kind}://; use a path on this machine or {known}"
        )
    _check_installed(name, text, kind)
    return epath.Path(text)


def _check_installed(name: str, text: str, kind: str) -> None:
    try:
        fsspec.get_filesystem_class(kind)
    except ImportError as error:
        raise UserError(f"{name}={text}: {error}") from error


def local(name: str, text: str | os.PathLike) -> pathlib.Path:
    """A path on this machine, relative or not. Raises UserError as `path`, and for addresses."""
    text = os.fspath(text)
    if is_address(text):
        raise UserError(f"{name}={text}: must be a path on this machine")
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        raise UserError(f"{name}={text}: there is no such home folder; use an absolute path")
    whole = pathlib.Path(os.path.abspath(expanded))
    for part in (whole, *whole.parents):
        if os.path.islink(part) and not os.path.exists(part):
            target = os.readlink(part)
            raise UserError(f"{name}={text}: {part} is a broken link to {target}; fix or remove it")
    return pathlib.Path(expanded)


def is_address(text: str | os.PathLike) -> bool:
    """Whether a text is a URL, such as gs://bucket/run, rather than a path."""
    return "://" in os.fspath(text)


def output_file(name: str, text: str | os.PathLike, replace: bool = False) -> pathlib.Path:
    """Checks the path of a file that will be written later, with `replacing`.

    Args:
      name: the flag that has this value, for errors.
      text: the path.
      replace: whether the file may exist already.

    Returns:
      The path.

    Raises:
      UserError: as `local`; or the path exists, is a folder, or its folder cannot be written.
    """
    found = local(name, text)
    if found.is_dir():
        raise UserError(f"{name}: {found} is an existing folder; give the name of a file in it")
    if found.exists() and not replace:
        raise UserError(f"{name}: {found} exists already; remove it, or choose another name")
    if not _is_special(found):
        try:
            tempfile.TemporaryFile(dir=found.parent).close()
        except OSError as error:
            raise UserError(
                f"{name}: {found.parent} is not a writable folder ({reason(error)}); choose another"
            ) from error
    return found


def output_folder(name: str, text: str | os.PathLike) -> pathlib.PurePath:
    """Creates an output folder; in a bucket, folders need not be created.

    Args:
      name: the flag that has this value, for errors.
      text: the path, or an address in a bucket.

    Returns:
      The path.

    Raises:
      UserError: as `path`; or the folder cannot be written.
    """
    if is_address(text):
        return path(name, text)
    found = local(name, text)
    try:
        found.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=found).close()
    except OSError as error:
        raise UserError(
            f"{name}: {found} cannot be written ({reason(error)}); choose another folder"
        ) from error
    return found


@contextlib.contextmanager
def whole(target: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Context manager: yields a temporary path, which is renamed to ``target`` at the end.

    Args:
      target: the file to write; an existing file is replaced atomically.

    Raises:
      OSError: the file could not be written; an existing file is kept.
    """
    target = pathlib.Path(os.path.realpath(target))
    # In the same folder, since renaming is atomic only within a file system. Devices are written
    # directly.
    new = target if _is_special(target) else target.with_name(f".new.{os.getpid()}.{target.name}")
    try:
        yield new
        if new != target:
            new.replace(target)
    finally:
        if new != target:
            new.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing(target: str | os.PathLike) -> Iterator[pathlib.Path]:
    """As `whole`, for a file that a user asked for.

    Raises:
      Failure: the file could not be written; an existing file is kept.
    """
    try:
        with whole(target) as new:
            yield new
    except OSError as error:
        path = os.path.realpath(target)
        raise Failure(f"{path} could not be written ({reason(error)})") from error


def _is_special(path: pathlib.Path) -> bool:
    """Whether a path is a device or a pipe, such as /dev/stdout."""
    return path.exists() and not path.is_file() and not path.is_dir()


def described(error: OSError) -> str:
    """The message of an OSError: the file, if it is known, and the reason."""
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if name is not None]
    return ": ".join([*names, reason(error)])


def reason(error: OSError) -> str:
    """The reason of an OSError, such as "Permission denied"."""
    text = error.strerror or next(iter(str(error).splitlines()), "") or type(error).__name__
    return re.sub(r"^\[Errno -?\d+\] ", "", text)
