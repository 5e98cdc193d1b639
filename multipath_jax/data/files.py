"""Image files where a user keeps them: in folders of classes, or inside a tar file."""

import collections
import contextlib
import os
import pathlib
import stat
import tarfile
import zlib
from collections.abc import Iterator, Set
from typing import NamedTuple

from multipath_jax.data.images import BadImage
from multipath_jax.errors import UserError
from multipath_jax.utils.names import shown

SUFFIXES = (
    ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp",
)  # fmt: skip
_REASONS = 8  # for leaving files out, of which a line of text has room for so many


class ImageFile(NamedTuple):
    """Where an encoded image lies, and what is known of it without reading it.

    Attributes:
      label: index of its class.
      name: its file name, with the folders that it lies in below that of its class.
      path: the file that holds it: its own, or a tar file.
      offset: where it begins there, in bytes.
      size: in bytes.
      modified: when that file was last written, in nanoseconds.
    """

    label: int
    name: str
    path: str
    offset: int
    size: int
    modified: int

    def __str__(self) -> str:
        own = self.path.endswith(self.name)
        return self.path if own else f"{self.name} in {self.path}"

    def read(self) -> bytes:
        """The encoded image. Raises `BadImage` where it cannot be read."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                encoded = file.read(self.size)
        except OSError as error:
            raise BadImage(error.strerror or str(error)) from error
        if len(encoded) < self.size:
            raise BadImage(f"{self.path} ends before it")
        return encoded


class LeftOut(collections.Counter):
    """What a folder or a tar file holds beside the images that are used: how many, by reason."""

    def __str__(self) -> str:
        counts = [f"{reason} ({count:,})" for reason, count in self.most_common(_REASONS)]
        return ", ".join(counts) + (", and more" if len(self) > _REASONS else "")


class Inside(NamedTuple):
    """What lies in a folder, by name."""

    folders: list[os.DirEntry]
    images: list[os.DirEntry]


def look_into(folder: str | os.PathLike, left_out: LeftOut) -> Inside:
    """The folders and the images in a folder; of images, names decide what is one.

    The one rule for all folders of a user's: what is hidden is left out, and links are followed.

    Args:
      left_out: counts what else there is.

    Raises:
      UserError: the folder cannot be read.
    """
    inside = Inside([], [])
    try:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                _sort_in(entry, inside, left_out)
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be read ({error.strerror})") from error
    return inside


def _sort_in(entry: os.DirEntry, inside: Inside, left_out: LeftOut) -> None:
    hidden = entry.name.startswith(".")
    try:
        mode = entry.stat().st_mode  # of what a link leads to
    except OSError:
        if not entry.is_symlink():
            raise
        mode = None
    if stat.S_ISREG(mode or 0):
        if _is_wanted(entry.name, left_out):
            inside.images.append(entry)
    elif mode and stat.S_ISDIR(mode):
        if hidden:
            left_out["hidden folders"] += 1
        else:
            inside.folders.append(entry)
    elif not hidden:
        # To read a pipe would be to wait for ever.
        left_out["neither files nor folders" if mode else "links that lead nowhere"] += 1


def _is_wanted(name: str, left_out: LeftOut) -> bool:
    """Whether a file is named like an image, and not hidden; what it holds is another matter."""
    image, hidden = name.lower().endswith(SUFFIXES), name.startswith(".")
    if hidden and image:
        left_out["hidden images"] += 1
    elif not hidden and not image:
        suffix = os.path.splitext(name)[1].lower()
        left_out[f"{shown(suffix)} files" if suffix else "files without a suffix"] += 1
    return image and not hidden


def images_within(folder: str | os.PathLike, left_out: LeftOut) -> list[os.DirEntry]:
    """The images in a folder, at any depth, sorted by their paths; otherwise as `look_into`."""
    above = frozenset(map(_identity, pathlib.Path(folder).absolute().parents))
    return list(_images_within(os.fspath(folder), left_out, above))


def _images_within(folder: str, left_out: LeftOut, above: Set) -> Iterator[os.DirEntry]:
    inside = look_into(folder, left_out)
    above = above | {_identity(folder)}
    for entry in sorted([*inside.folders, *inside.images], key=lambda entry: entry.name):
        if not entry.is_dir():
            yield entry
        elif _identity(entry) in above:
            left_out["links to a folder they lie in"] += 1
        else:
            yield from _images_within(entry.path, left_out, above)


def _identity(folder: str | os.PathLike) -> tuple[int, int]:
    """What tells a folder from all others, by whichever path it is reached."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def class_folders(parent: str | os.PathLike, left_out: LeftOut) -> list[str]:
    """The names of the folders in a folder; if there are any, the images beside them are left out.

    Raises:
      UserError: the folder cannot be read.
    """
    others = LeftOut()
    inside = look_into(parent, others)
    if inside.folders:
        if inside.images:
            others["images outside of class folders"] = len(inside.images)
        left_out.update(others)
    return [entry.name for entry in inside.folders]


def image_files(folder: str | os.PathLike, label: int, left_out: LeftOut) -> list[ImageFile]:
    """The images of one class: all in its folder, at any depth, sorted.

    Raises:
      UserError: there is none, or the folder cannot be read.
    """
    others = LeftOut()
    found = [_image_file(entry, folder, label) for entry in images_within(folder, others)]
    if not found:
        only = f", only {others}" if others else ""
        raise UserError(
            f"the class folder {folder} holds no image ({', '.join(SUFFIXES)}){only}; add some or "
            "remove it"
        )
    left_out.update(others)
    return found


def flat_images(folder: str | os.PathLike, left_out: LeftOut) -> list[ImageFile]:
    """The images right in a folder, which may hold none, without a label; sorted by name."""
    return [_image_file(entry, folder, -1) for entry in look_into(folder, left_out).images]


def _image_file(entry: os.DirEntry, folder: str | os.PathLike, label: int) -> ImageFile:
    name, status = entry.path.removeprefix(os.path.join(folder, "")), entry.stat()
    return ImageFile(label, name, entry.path, 0, status.st_size, status.st_mtime_ns)


def tar_images(
    path: str | os.PathLike, left_out: LeftOut, label: int = -1, offset: int = 0
) -> list[ImageFile]:
    """The images in a tar file, or in one that begins inside another; sorted by name.

    Args:
      left_out: counts what else there is.

    Raises:
      UserError: it is no uncompressed tar file, or cut off.
    """
    path = os.fspath(path)
    with open_tar(path, offset) as tar:
        modified = os.stat(path).st_mtime_ns
        return sorted(
            ImageFile(label, name, path, member.offset_data, member.size, modified)
            for name, member in members(tar, left_out)
            if _is_wanted(name, left_out)
        )


@contextlib.contextmanager
def open_tar(
    path: str | os.PathLike, offset: int = 0, mode: str = "r:"
) -> Iterator[tarfile.TarFile]:
    """A tar file, or one that begins inside another; offsets of members are those in the file.

    Raises:
      UserError: it is none, or cut off.
    """
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            with tarfile.open(fileobj=file, mode=mode) as tar:
                yield tar
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"{path} cannot be read as a tar file ({error}); get it again, as it was published"
        ) from error


def members(tar: tarfile.TarFile, left_out: LeftOut) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """The files in a tar file, by the last part of their names; folders are passed over."""
    for member in tar:
        if member.isfile():
            yield os.path.basename(member.name), member
        elif not member.isdir():
            left_out["links in a tar file"] += 1


def is_there(path: pathlib.Path) -> bool:
    """Whether something has that path. Raises UserError for a link to nothing."""
    if os.path.islink(path) and not os.path.exists(path):
        raise UserError(f"{path} is a link to nothing; mend or remove it")
    return os.path.exists(path)
