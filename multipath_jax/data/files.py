"""Listing a user's image files: in class folders, or inside tar files."""

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
from multipath_jax.utils.names import printable

SUFFIXES = (
    ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp",
)  # fmt: skip
_REASONS = 8  # number of reasons for ignoring files that are listed in one line


class ImageFile(NamedTuple):
    """The location and metadata of an encoded image, known without reading it.

    Attributes:
      label: index of its class.
      name: its path relative to the class folder.
      path: the file that contains it: the image file itself, or a tar file.
      offset: position of its first byte in that file.
      size: size in bytes.
      modified: modification time of that file, in nanoseconds.
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
        """Reads the encoded image. Raises `BadImage` if it cannot be read."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                encoded = file.read(self.size)
        except OSError as error:
            raise BadImage(error.strerror or str(error)) from error
        if len(encoded) < self.size:
            raise BadImage(f"{self.path} is truncated")
        return encoded


class LeftOut(collections.Counter):
    """Number of ignored files and folders, by the reason for ignoring them."""

    def __str__(self) -> str:
        counts = [f"{reason} ({count:,})" for reason, count in self.most_common(_REASONS)]
        return ", ".join(counts) + (", and more" if len(self) > _REASONS else "")


class Listing(NamedTuple):
    """The folders and image files in a folder, each sorted by name."""

    folders: list[os.DirEntry]
    images: list[os.DirEntry]


def list_folder(folder: str | os.PathLike, left_out: LeftOut) -> Listing:
    """Lists the folders and the image files in a folder.

    Images are recognized by their suffix. Hidden files and folders are ignored, symbolic links
    are followed.

    Args:
      folder: the folder to list.
      left_out: updated with the number of ignored entries.

    Raises:
      UserError: the folder cannot be read.
    """
    listing = Listing([], [])
    try:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                _add_entry(entry, listing, left_out)
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be read ({error.strerror})") from error
    return listing


def _add_entry(entry: os.DirEntry, listing: Listing, left_out: LeftOut) -> None:
    hidden = entry.name.startswith(".")
    try:
        mode = entry.stat().st_mode  # of the target of a link
    except OSError:
        if not entry.is_symlink():
            raise
        mode = None
    if stat.S_ISREG(mode or 0):
        if _is_image(entry.name, left_out):
            listing.images.append(entry)
    elif mode and stat.S_ISDIR(mode):
        if hidden:
            left_out["hidden folders"] += 1
        else:
            listing.folders.append(entry)
    elif not hidden:
        # Reading a pipe would block forever.
        left_out["neither files nor folders" if mode else "broken links"] += 1


def _is_image(name: str, left_out: LeftOut) -> bool:
    """Whether a file has the suffix of an image and is not hidden; its content is not checked."""
    image, hidden = name.lower().endswith(SUFFIXES), name.startswith(".")
    if hidden and image:
        left_out["hidden images"] += 1
    elif not hidden and not image:
        suffix = os.path.splitext(name)[1].lower()
        left_out[f"{printable(suffix)} files" if suffix else "files without a suffix"] += 1
    return image and not hidden


def images_within(folder: str | os.PathLike, left_out: LeftOut) -> list[os.DirEntry]:
    """The images in a folder at any depth, sorted by path; otherwise as `list_folder`."""
    above = frozenset(map(_identity, pathlib.Path(folder).absolute().parents))
    return list(_images_within(os.fspath(folder), left_out, above))


def _images_within(folder: str, left_out: LeftOut, above: Set) -> Iterator[os.DirEntry]:
    listing = list_folder(folder, left_out)
    above = above | {_identity(folder)}
    for entry in sorted([*listing.folders, *listing.images], key=lambda entry: entry.name):
        if not entry.is_dir():
            yield entry
        elif _identity(entry) in above:
            left_out["links to a parent folder"] += 1
        else:
            yield from _images_within(entry.path, left_out, above)


def _identity(folder: str | os.PathLike) -> tuple[int, int]:
    """Device and inode number, which identify a folder whatever its path is."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def class_folders(parent: str | os.PathLike, left_out: LeftOut) -> list[str]:
    """The names of the folders in a folder, sorted.

    Args:
      parent: the folder to list.
      left_out: if there are class folders, updated with what is ignored, such as images beside
        them.

    Raises:
      UserError: the folder cannot be read.
    """
    others = LeftOut()
    listing = list_folder(parent, others)
    if listing.folders:
        if listing.images:
            others["images outside of class folders"] = len(listing.images)
        left_out.update(others)
    return [entry.name for entry in listing.folders]


def image_files(folder: str | os.PathLike, label: int, left_out: LeftOut) -> list[ImageFile]:
    """The images of one class: all images in its folder at any depth, sorted by path.

    Args:
      folder: the class folder.
      label: index of the class.
      left_out: updated with the number of ignored files.

    Raises:
      UserError: the folder has no images, or cannot be read.
    """
    others = LeftOut()
    found = [_image_file(entry, folder, label) for entry in images_within(folder, others)]
    if not found:
        only = f", only {others}" if others else ""
        raise UserError(
            f"the class folder {folder} has no images ({', '.join(SUFFIXES)}){only}; add some or "
            "remove it"
        )
    left_out.update(others)
    return found


def flat_images(folder: str | os.PathLike, left_out: LeftOut) -> list[ImageFile]:
    """The images directly in a folder, sorted by name, with the label -1 (unknown)."""
    return [_image_file(entry, folder, -1) for entry in list_folder(folder, left_out).images]


def _image_file(entry: os.DirEntry, folder: str | os.PathLike, label: int) -> ImageFile:
    name, status = entry.path.removeprefix(os.path.join(folder, "")), entry.stat()
    return ImageFile(label, name, entry.path, 0, status.st_size, status.st_mtime_ns)


def tar_images(
    path: str | os.PathLike, left_out: LeftOut, label: int = -1, offset: int = 0
) -> list[ImageFile]:
    """The images in a tar file, sorted by name.

    Args:
      path: the tar file.
      left_out: updated with the number of ignored members.
      label: index of the images' class; -1 if unknown.
      offset: position of the tar archive in the file, for one that is nested in another.

    Raises:
      UserError: the file is not an uncompressed tar file, or is truncated.
    """
    path = os.fspath(path)
    with open_tar(path, offset) as tar:
        modified = os.stat(path).st_mtime_ns
        return sorted(
            ImageFile(label, name, path, member.offset_data, member.size, modified)
            for name, member in members(tar, left_out)
            if _is_image(name, left_out)
        )


@contextlib.contextmanager
def open_tar(
    path: str | os.PathLike, offset: int = 0, mode: str = "r:"
) -> Iterator[tarfile.TarFile]:
    """Opens a tar file; the offsets of its members are relative to the file.

    Args:
      path: the file.
      offset: position of the tar archive in the file, for one that is nested in another.
      mode: as in `tarfile.open`.

    Raises:
      UserError: the file is not a tar file, or is truncated.
    """
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            with tarfile.open(fileobj=file, mode=mode) as tar:
                yield tar
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"{path} cannot be read as a tar file ({error}); download it again"
        ) from error


def members(tar: tarfile.TarFile, left_out: LeftOut) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """Yields the files in a tar file with their base names; folders are skipped."""
    for member in tar:
        if member.isfile():
            yield os.path.basename(member.name), member
        elif not member.isdir():
            left_out["links in a tar file"] += 1


def is_there(path: pathlib.Path) -> bool:
    """Whether a path exists. Raises UserError for a broken link."""
    if os.path.islink(path) and not os.path.exists(path):
        raise UserError(f"{path} is a broken link; fix or remove it")
    return os.path.exists(path)
