"""ILSVRC2012 as its users have it: tar files, or folders. Nothing is unpacked.

Training images, in the source folder:
    ILSVRC2012_img_train.tar          as published: one WNID.tar for each class
    train/WNID/*.JPEG                 or unpacked

Validation images:
    val/WNID/*.JPEG                   sorted into classes
    ILSVRC2012_img_val.tar            as published, or
    val/*.JPEG                        unpacked; both of these need labels

The forms that labels may have are in `imagenet_labels`.
"""

import os
import pathlib
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from multipath_jax.data.files import (
    ImageFile,
    LeftOut,
    class_folders,
    flat_images,
    image_files,
    is_there,
    members,
    open_tar,
    tar_images,
)
from multipath_jax.data.imagenet.labels import WNID, label_file, read_labels
from multipath_jax.errors import UserError
from multipath_jax.utils import filesystem

TRAIN_TAR = "ILSVRC2012_img_train.tar"
VAL_TAR = "ILSVRC2012_img_val.tar"
_WANTED = f"put {TRAIN_TAR} and {VAL_TAR} there, or the folders train/WNID and val/WNID"


class Source(NamedTuple):
    """What was found: the classes, sorted by WNID, the images of each split, and what else."""

    class_names: tuple[str, ...]
    train: list[ImageFile]
    validation: list[ImageFile]
    left_out: LeftOut


def find_images(
    source: str | os.PathLike,
    first_classes: int | None = None,
    val_labels: str | os.PathLike | None = None,
) -> Source:
    """Finds the images in a folder, in one of the layouts above. Reads no image.

    Args:
      first_classes: only so many classes, the first by sorted WNID.
      val_labels: the file with the validation images' labels, wherever it is.

    Raises:
      UserError: something is missing, empty, damaged or without label; it is named.
    """
    source, left_out = filesystem.local("--source", source), LeftOut()
    if is_there(source / TRAIN_TAR):
        names, train = _tarred_training(source / TRAIN_TAR, first_classes, left_out)
    elif is_there(source / "train"):
        names, train = _unpacked_training(source / "train", first_classes, left_out)
    else:
        raise UserError(f"{source} holds no training images; {_WANTED}")
    wanted = names[:first_classes]
    if first_classes is not None and len(wanted) < first_classes:
        raise UserError(
            f"{source} holds {len(names)} classes, but {first_classes} are asked for; get the "
            "others, or prepare them all with --config=full"
        )
    validation = _validation(source, names, val_labels, len(wanted), left_out)
    if not validation:
        raise UserError(f"{source} holds no validation image of the classes wanted; {_WANTED}")
    return Source(wanted, train, validation, left_out)


def _tarred_training(
    path: pathlib.Path, first: int | None, left_out: LeftOut
) -> tuple[tuple[str, ...], list]:
    """All WNIDs, sorted, and the images of the first of them."""
    with open_tar(path) as tar:
        begins = {
            pathlib.PurePath(name).stem: member.offset_data
            for name, member in members(tar, left_out)
            if not name.startswith(".")  # macOS adds ._n01440764.tar
        }
    names = _checked(path, begins)
    train = []
    for label, name in enumerate(names[:first]):
        images = tar_images(path, left_out, label, begins[name])
        if not images:
            raise UserError(f"the class {name} in {path} holds no image; get that file again")
        train += images
    return names, train


def _unpacked_training(
    folder: pathlib.Path, first: int | None, left_out: LeftOut
) -> tuple[tuple[str, ...], list]:
    """The same, of class folders."""
    names = _checked(folder, class_folders(folder, left_out))
    train = []
    for label, name in enumerate(names[:first]):
        train += image_files(folder / name, label, left_out)
    return names, train


def _checked(where: pathlib.Path, names: Collection[str]) -> tuple[str, ...]:
    """The WNIDs, sorted. Raises UserError for a name that is none."""
    for name in names:
        if not WNID.fullmatch(name):
            raise UserError(
                f"{name!r} in {where} is not named by a WNID such as n01440764; remove it, or "
                "train on folders with names of your own by --config=folder"
            )
    if not names:
        raise UserError(f"{where} holds no classes; {_WANTED}")
    return tuple(sorted(names))


def _validation(
    source: pathlib.Path,
    names: Sequence[str],
    val_labels: str | os.PathLike | None,
    wanted: int,
    left_out: LeftOut,
) -> list[ImageFile]:
    """The validation images of the first `wanted` of the classes."""
    tar, folder = source / VAL_TAR, source / "val"
    if is_there(tar):
        images = tar_images(tar, left_out)
    elif not is_there(folder):
        raise UserError(f"{source} holds no validation images; {_WANTED}")
    elif classes := class_folders(folder, left_out):
        index = _indices(classes, names, folder)
        return [
            image
            for name in classes
            if index[name] < wanted
            for image in image_files(folder / name, index[name], left_out)
        ]
    else:
        images = flat_images(folder, left_out)
    labels = filesystem.local("--val_labels", val_labels) if val_labels else label_file(source)
    wnids = read_labels(labels, [image.name for image in images])
    index = _indices(wnids, names, labels)
    labelled = (i._replace(label=index[n]) for i, n in zip(images, wnids, strict=True))
    return [image for image in labelled if image.label < wanted]


def _indices(wnids: Iterable[str], names: Sequence[str], where: pathlib.Path) -> dict[str, int]:
    """Each class's label. Raises UserError for one without training images."""
    index = {name: label for label, name in enumerate(names)}
    if strange := sorted(set(wnids) - set(index)):
        raise UserError(
            f"{where} has validation images of the class {strange[0]}, but there are no training "
            "images of it; add those, or remove these"
        )
    return index
