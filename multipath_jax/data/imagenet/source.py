"""Finding the images of ILSVRC2012 in its tar files, which are not unpacked, or in folders.

Training images, in the source folder:
    ILSVRC2012_img_train.tar          as published: one WNID.tar for each class
    train/WNID/*.JPEG                 or unpacked

Validation images:
    val/WNID/*.JPEG                   sorted into classes
    ILSVRC2012_img_val.tar            as published, or
    val/*.JPEG                        unpacked; both of these need labels

The formats of labels are listed in `labels`.
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
    """The images that were found.

    Attributes:
      class_names: the WNIDs, sorted.
      train, validation: the images of each split.
      left_out: number of ignored files, by reason.
    """

    class_names: tuple[str, ...]
    train: list[ImageFile]
    validation: list[ImageFile]
    left_out: LeftOut


def find_images(
    source: str | os.PathLike,
    first_classes: int | None = None,
    val_labels: str | os.PathLike | None = None,
) -> Source:
    """Finds the images in a folder, in one of the layouts above. No image is read.

    Args:
      source: the folder.
      first_classes: if given, only this many classes, the first by sorted WNID.
      val_labels: the file with the labels of the validation images; None: a file in the folder.

    Returns:
      The classes and images.

    Raises:
      UserError: files or labels are missing, empty or damaged.
    """
    source, left_out = filesystem.local("source", source), LeftOut()
    if is_there(source / TRAIN_TAR):
        names, train = _tarred_training(source / TRAIN_TAR, first_classes, left_out)
    elif is_there(source / "train"):
        names, train = _unpacked_training(source / "train", first_classes, left_out)
    else:
        raise UserError(f"{source} has no training images; {_WANTED}")
    wanted = names[:first_classes]
    if first_classes is not None and len(wanted) < first_classes:
        raise UserError(
            f"{source} has {len(names)} classes, but {first_classes} are required; add the others, "
            "or prepare the config full, with all that there are"
        )
    validation = _validation(source, names, val_labels, len(wanted), left_out)
    if not validation:
        raise UserError(f"{source} has no validation images of these classes; {_WANTED}")
    return Source(wanted, train, validation, left_out)


def _tarred_training(
    path: pathlib.Path, first: int | None, left_out: LeftOut
) -> tuple[tuple[str, ...], list]:
    """All WNIDs, sorted, and the training images of the first ones, from the tar file."""
    with open_tar(path) as tar:
        begins = {
            pathlib.PurePath(name).stem: member.offset_data
            for name, member in members(tar, left_out)
            if not name.startswith(".")  # macOS adds files such as ._n01440764.tar
        }
    names = _checked(path, begins)
    train = []
    for label, name in enumerate(names[:first]):
        images = tar_images(path, left_out, label, begins[name])
        if not images:
            raise UserError(f"the class {name} in {path} has no images; download the file again")
        train += images
    return names, train


def _unpacked_training(
    folder: pathlib.Path, first: int | None, left_out: LeftOut
) -> tuple[tuple[str, ...], list]:
    """As `_tarred_training`, from class folders."""
    names = _checked(folder, class_folders(folder, left_out))
    train = []
    for label, name in enumerate(names[:first]):
        train += image_files(folder / name, label, left_out)
    return names, train


def _checked(where: pathlib.Path, names: Collection[str]) -> tuple[str, ...]:
    """The WNIDs, sorted. Raises UserError for a name that is not a WNID."""
    for name in names:
        if not WNID.fullmatch(name):
            raise UserError(
                f"{name!r} in {where} is not a WNID such as n01440764; remove it, or use "
                "the recipe of configs/folder.py, which trains on folders with any names"
            )
    if not names:
        raise UserError(f"{where} has no classes; {_WANTED}")
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
        raise UserError(f"{source} has no validation images; {_WANTED}")
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
    labels = filesystem.local("val_labels", val_labels) if val_labels else label_file(source)
    wnids = read_labels(labels, [image.name for image in images])
    index = _indices(wnids, names, labels)
    labelled = (i._replace(label=index[n]) for i, n in zip(images, wnids, strict=True))
    return [image for image in labelled if image.label < wanted]


def _indices(wnids: Iterable[str], names: Sequence[str], where: pathlib.Path) -> dict[str, int]:
    """The label of each class. Raises UserError for a class without training images."""
    index = {name: label for label, name in enumerate(names)}
    if strange := sorted(set(wnids) - set(index)):
        raise UserError(
            f"{where} has validation images of the class {strange[0]}, which has no training "
            "images; add training images, or remove the validation images"
        )
    return index
