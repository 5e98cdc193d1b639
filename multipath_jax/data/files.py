"""Image files where a user keeps them: in folders of classes, or inside a tar file."""

import contextlib
import os
import tarfile
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from multipath_jax.data.images import BadImage
from multipath_jax.errors import UserError

SUFFIXES = (".jpeg", ".jpg", ".png", ".gif", ".bmp", ".webp")


class ImageFile(NamedTuple):
    """Where an encoded image lies, and what is known of it without reading it.

    Attributes:
      label: index of its class.
      name: its file name.
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
        inside = os.path.basename(self.path) != self.name
        return f"{self.name} in {self.path}" if inside else self.path

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


def folders(parent: str | os.PathLike) -> list[str]:
    """The names of the folders in a folder, sorted, hidden ones apart."""
    with _scan(parent) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def image_files(folder: str | os.PathLike, label: int) -> list[ImageFile]:
    """The images of one class: all in its folder that are named like one, sorted by name.

    Raises:
      UserError: there is none, or the folder cannot be read.
    """
    if found := flat_images(folder, label):
        return found
    raise UserError(
        f"the class folder {folder} holds no image ({', '.join(SUFFIXES)}); add some or remove it"
    )


def flat_images(folder: str | os.PathLike, label: int = -1) -> list[ImageFile]:
    """The same, of a folder that may hold none."""
    found = []
    with _scan(folder) as entries:
        for entry in entries:
            if is_image(entry.name):
                status = entry.stat()
                found.append(
                    ImageFile(label, entry.name, entry.path, 0, status.st_size, status.st_mtime_ns)
                )
    return sorted(found)


def tar_images(path: str | os.PathLike, label: int = -1, offset: int = 0) -> list[ImageFile]:
    """The images in a tar file, or in one that begins inside another; sorted by name.

    Raises:
      UserError: it is no uncompressed tar file, or cut off.
    """
    path = os.fspath(path)
    with open_tar(path, offset) as tar:
        modified = os.stat(path).st_mtime_ns
        members = ((os.path.basename(member.name), member) for member in tar if member.isfile())
        return sorted(
            ImageFile(label, name, path, member.offset_data, member.size, modified)
            for name, member in members
            if is_image(name)
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


def is_image(name: str) -> bool:
    """Whether a file is named like an image, and not hidden; what it holds is another matter."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _scan(folder: str | os.PathLike):
    try:
        return os.scandir(folder)
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be read ({error.strerror})") from error
