"""A user's own images, read directly from a folder of class folders.

    DIR/train/CLASS/*.jpg  and  DIR/test/CLASS/*.jpg     or `val`, `valid`, `validation`
    DIR/CLASS/*.jpg                                      the second of every ten is held out

If there are several folders to test on, the first in this order with labelled images is used.

The first layout is that of TFDS's `ImageFolder`, which requires TensorFlow even to list the files.
This builder describes the same data set and gives random access to it without TensorFlow.
"""

import contextlib
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

from multipath_jax.data.files import (
    ImageFile,
    LeftOut,
    class_folders,
    image_files,
    images_within,
)
from multipath_jax.errors import UserError
from multipath_jax.utils import filesystem
from multipath_jax.utils.names import printable

TRAIN_FOLDER = "train"
TEST_FOLDERS = ("test", "val", "valid", "validation")
_HELD_OUT = 10
_LISTED = 10  # number of class names in a message


class Folder(tfds.core.DatasetBuilder, skip_registration=True):
    """A folder of images as a TFDS data set with the splits `train` and `test`.

    Features: `image` (of any size and encoding), `label`, `file_name`.

    Attributes:
      notes: lines about what was found in the folder and what was ignored.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self,
        source: str | os.PathLike,
        class_names: Sequence[str],
        splits: Mapping[str, Sequence[ImageFile]],
        notes: Sequence[str] = (),
    ):
        self.notes = tuple(notes)
        super().__init__(data_dir=source)
        self._data_dir = os.fspath(source)  # the images' own folder, rather than a version in it
        self._splits = {name: FolderSource(images) for name, images in splits.items()}
        self.info.features["label"].names = list(class_names)
        self.info.set_splits(
            tfds.core.SplitDict([_split_info(name, images) for name, images in splits.items()])
        )

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Images in a folder of class folders.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "label": tfds.features.ClassLabel(),
                    "file_name": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def as_data_source(self, split: str) -> "FolderSource":
        """The encoded images of a split."""
        return self._splits[split]

    def _download_and_prepare(self, *args, **kwargs):
        raise UserError("a folder of images needs no preparation; read it with as_data_source")

    def _as_dataset(self, *args, **kwargs):
        raise UserError("a folder of images has no tf.data pipeline; read it with as_data_source")


def _split_info(name: str, images: Sequence[ImageFile]) -> tfds.core.SplitInfo:
    size = sum(image.size for image in images)
    return tfds.core.SplitInfo(name=name, shard_lengths=[len(images)], num_bytes=size)


class FolderSource(Sequence):
    """The images of one split in a fixed order, as a random-access data source for Grain."""

    def __init__(self, images: Sequence[ImageFile]):
        self.images = tuple(images)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`image` (the encoded bytes), `label` (int) and `file_name`.

        Raises:
          BadImage: the file cannot be read.
        """
        image = self.images[index]
        return {"image": image.read(), "label": image.label, "file_name": image.name}


def open_folder(source: str | os.PathLike) -> Folder:
    """Opens a folder of class folders, in one of the layouts above.

    The classes are the names of the folders, sorted; a class has all images in its folder, at any
    depth. Hidden files and folders are ignored, links are followed. The names of the folders for
    training and testing may be in upper or lower case. Without them, the second of every ten images
    of each class, sorted by path, is held out for testing.

    Args:
      source: the folder.

    Returns:
      A TFDS builder with the splits `train` and `test`.

    Raises:
      UserError: the folder is missing or has no class folders, a class has no images, there are
        fewer than two classes, a test class has no training images, or there are no test images.
    """
    source = filesystem.local("source", source)
    if not os.path.isdir(source):
        raise UserError(f"{source} is not a folder; name one with a folder for each class")
    left_out = LeftOut()
    names = class_folders(source, left_out)
    if given := _named_as_splits(source, names):
        found = _given_splits(source, names, given, left_out)
    else:
        found = _hold_out(source, left_out)
    if not found.splits["test"]:
        raise UserError(f"{source} has no test images; add images, or a folder test/CLASS")
    return Folder(source, found.class_names, found.splits, _notes(source, found, left_out))


class _Found(NamedTuple):
    """The classes and splits of a folder.

    Attributes:
      class_names: names in the order of the labels.
      splits: the images of each split.
      held_out: a phrase that says which images are the test split.
    """

    class_names: list[str]
    splits: dict[str, list[ImageFile]]
    held_out: str


def _named_as_splits(source: pathlib.Path, names: Sequence[str]) -> dict[str, pathlib.Path]:
    """The folders whose names are those of splits, by the name in lower case."""
    given: dict[str, pathlib.Path] = {}
    for name in names:
        kind = name.lower()
        if kind in given:
            raise UserError(
                f"{source} has both {given[kind].name} and {name}, which name the same split; "
                "merge them, or rename one"
            )
        if kind == TRAIN_FOLDER or kind in TEST_FOLDERS:
            given[kind] = source / name
    return given


def _given_splits(
    source: pathlib.Path,
    names: Sequence[str],
    given: Mapping[str, pathlib.Path],
    left_out: LeftOut,
) -> _Found:
    """Classes and splits of the layout with a folder for each split."""
    train = given.get(TRAIN_FOLDER)
    tests = [given[name] for name in TEST_FOLDERS if name in given]
    if train is None or not tests:
        raise UserError(
            f"{source} has {', '.join(names)}; it needs {TRAIN_FOLDER} and "
            f"{' or '.join(TEST_FOLDERS)}: add the missing one, or put the class folders directly "
            "there, under other names"
        )
    class_names = _class_names(train, left_out)
    test = _labelled(tests, class_names)
    tested = class_folders(test, left_out)
    for name in tested:
        if name not in class_names:
            raise UserError(
                f"{test} has the class {name!r}, but {train} does not; add it there, or remove it "
                "here"
            )
    if not tested:
        raise UserError(
            f"{test} has no class folders, so its images have no labels; sort them into class "
            f"folders, or use {train} as the source, a part of which is then held out"
        )
    for name in names:
        if source / name not in (train, test):
            _count_unused(source / name, left_out)
    splits = {
        "train": _images(train, class_names, class_names, left_out),
        "test": _images(test, tested, class_names, left_out),
    }
    return _Found(class_names, splits, f"the folder {printable(test.name)}")


def _labelled(tests: Sequence[pathlib.Path], class_names: Sequence[str]) -> pathlib.Path:
    """The first folder with class folders: a folder `test` often has images without labels."""
    for test in tests:
        if set(class_folders(test, LeftOut())) & set(class_names):
            return test
    return tests[0]


def _count_unused(folder: pathlib.Path, left_out: LeftOut) -> None:
    """Counts the images in a folder that is not used; a folder that cannot be read is skipped."""
    with contextlib.suppress(UserError):
        if images := images_within(folder, LeftOut()):
            left_out[f"images in {printable(folder.name)}"] += len(images)


def _hold_out(source: pathlib.Path, left_out: LeftOut) -> _Found:
    """Classes and splits of the layout with class folders only."""
    class_names = _class_names(source, LeftOut())  # the caller has counted ignored files already
    splits = {"train": [], "test": []}
    for name in class_names:
        for index, image in enumerate(_images(source, [name], class_names, left_out)):
            # The second, so that a class with a single image has a training image.
            splits["test" if index % _HELD_OUT == 1 else "train"].append(image)
    return _Found(class_names, splits, f"the second of every {_HELD_OUT} images of a class")


def _notes(source: pathlib.Path, found: _Found, left_out: LeftOut) -> tuple[str, ...]:
    """Lines about the folder: counts, classes, held-out images, ignored files."""
    names, (train, test) = found.class_names, (found.splits[split] for split in ("train", "test"))
    tested = {image.label for image in test}
    notes = [
        f"{printable(str(source))}: {len(train):,} training and {len(test):,} test images of "
        f"{len(names):,} classes: {_listed(names)}",
        f"held out to test on: {found.held_out}",
    ]
    if untested := [name for label, name in enumerate(names) if label not in tested]:
        notes.append(f"without test images: {_listed(untested)}")
    if left_out:
        notes.append(f"left out: {left_out}")
    return tuple(notes)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED:,} more" if len(names) > _LISTED else ""
    return ", ".join(map(printable, names[:_LISTED])) + more


def _class_names(folder: pathlib.Path, left_out: LeftOut) -> list[str]:
    names = class_folders(folder, left_out)
    if not names:
        raise UserError(f"{folder} has no class folders; put the images of each class into one")
    if len(names) == 1:
        raise UserError(
            f"{folder} has a single class folder, {names[0]}; at least two classes are needed"
        )
    return names


def _images(
    folder: pathlib.Path, names: Sequence[str], class_names: Sequence[str], left_out: LeftOut
) -> list[ImageFile]:
    """The images of some of the classes."""
    labels = {name: label for label, name in enumerate(class_names)}
    return [i for name in names for i in image_files(folder / name, labels[name], left_out)]
