"""Paths as users write them, and files that are written whole or not at all."""

import contextlib
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator

import fsspec
from etils import epath

from multipath_jax.errors import Failure, UserError

BUCKETS = ("gs", "s3", "az")  # the addresses that are paths to etils, which TFDS and JAX use


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


def anywhere(name: str, text: str | os.PathLike) -> str:
    """An absolute path on this machine, or any address that fsspec reads from.

    Args:
      name: as in `path`, as is what is raised.
      text: as the user wrote it.
    """
    text = os.fspath(text)
    if not is_address(text):
        return os.fspath(path(name, text))
    kind = text.partition("://")[0].partition("::")[0]
    if kind not in fsspec.available_protocols():
        raise UserError(f"{name}={text}: no access to {kind}://; use a path on this machine")
    _check_installed(name, text, kind)
    return text


def _check_installed(name: str, text: str, kind: str) -> None:
    try:
        fsspec.get_filesystem_class(kind)
    except ImportError as error:
        raise UserError(f"{name}={text}: {error}") from error


def local(name: str, text: str | os.PathLike) -> pathlib.Path:
    """A path on this machine, relative or not. Raises UserError as `path`, and for addresses."""
    text = os.fspath(text)
    if is_address(text):
        raise UserError(f"{name}={text}: only paths on this machine will do here")
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        raise UserError(f"{name}={text}: there is no such home folder; write the path from / on")
    whole = pathlib.Path(os.path.abspath(expanded))
    for part in (whole, *whole.parents):
        if os.path.islink(part) and not os.path.exists(part):
            target = os.readlink(part)
            raise UserError(f"{name}={text}: {part} is a link to {target}, which is not there")
    return pathlib.Path(expanded)


def is_address(text: str | os.PathLike) -> bool:
    """Whether it is an address, such as gs://bucket/run, rather than a path."""
    return "://" in os.fspath(text)


def output_file(name: str, text: str | os.PathLike, replace: bool = False) -> pathlib.Path:
    """The path of a file to be written later, with `replacing`.

    Args:
      replace: whether it may be there already.

    Raises:
      UserError: as `local`; it is there, or a folder, or nothing can be written beside it.
    """
    found = local(name, text)
    if found.is_dir():
        raise UserError(f"{name}: {found} is there already, and a folder; name a file in it")
    if found.exists() and not replace:
        raise UserError(f"{name}: {found} is there already; remove it, or choose another name")
    if not _is_special(found):
        try:
            tempfile.TemporaryFile(dir=found.parent).close()
        except OSError as error:
            raise UserError(
                f"{name}: {found.parent} is no folder that can be written ({reason(error)}); "
                "choose another"
            ) from error
    return found


def output_folder(name: str, text: str | os.PathLike) -> pathlib.PurePath:
    """The path of a folder, made if need be, or the address of one in a bucket.

    Raises:
      UserError: as `path`; it cannot be written.
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
def replacing(target: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A name to write to, of the same suffix; what is written there then becomes ``target``.

    Raises:
      Failure: it could not be written; the file that was there before is kept.
    """
    target = pathlib.Path(os.path.realpath(target))
    # Beside it, for only in its own file system a file is moved at once; not over a device.
    new = target if _is_special(target) else target.with_name(f".new.{os.getpid()}.{target.name}")
    try:
        yield new
        if new != target:
            new.replace(target)
    except OSError as error:
        raise Failure(f"{target} could not be written ({reason(error)})") from error
    finally:
        if new != target:
            new.unlink(missing_ok=True)


def _is_special(path: pathlib.Path) -> bool:
    """Whether it is a device or a pipe, such as /dev/stdout."""
    return path.exists() and not path.is_file() and not path.is_dir()


def described(error: OSError) -> str:
    """The file, if it is known, and why the system refused."""
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if name is not None]
    return ": ".join([*names, reason(error)])


def reason(error: OSError) -> str:
    """Why the system refused, in a few words."""
    text = error.strerror or next(iter(str(error).splitlines()), "") or type(error).__name__
    return re.sub(r"^\[Errno -?\d+\] ", "", text)
