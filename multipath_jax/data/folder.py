"""A user's own images, read from a folder of class folders as they are.

    DIR/train/CLASS/*.jpg  and  DIR/test/CLASS/*.jpg     `test`, or else `val` or `validation`
    DIR/CLASS/*.jpg                                      the second of every ten is held out

The first layout is that of TFDS's `ImageFolder`, which however needs TensorFlow even to list the
files. This builder describes the same data set, and reads it at random without.
"""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds
from absl import logging

from multipath_jax.data.files import ImageFile, folders, image_files
from multipath_jax.errors import UserError

TEST_FOLDERS = ("test", "val", "validation")
_HELD_OUT = 10


class Folder(tfds.core.DatasetBuilder, skip_registration=True):
    """A folder of images as a TFDS data set with the splits `train` and `test`.

    Features: `image` (of any size and encoding), `label`, `file_name`.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self,
        source: str | os.PathLike,
        class_names: Sequence[str],
        splits: Mapping[str, Sequence[ImageFile]],
    ):
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
        """The images of a split, still encoded."""
        return self._splits[split]

    def _download_and_prepare(self, *args, **kwargs):
        raise UserError("a folder of images needs no preparation; read it with as_data_source")

    def _as_dataset(self, *args, **kwargs):
        raise UserError("a folder of images is no tf.data set; read it with as_data_source")


def _split_info(name: str, images: Sequence[ImageFile]) -> tfds.core.SplitInfo:
    size = sum(image.size for image in images)
    return tfds.core.SplitInfo(name=name, shard_lengths=[len(images)], num_bytes=size)


class FolderSource(Sequence):
    """The images of one split, in a fixed order: what Grain takes as a random-access source."""

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
    """The images in a folder of class folders, in one of the layouts above.

    Classes are the folders' names, sorted. Without folders for training and testing, the second of
    every ten images of a class, by their sorted names, is held out for testing.

    Raises:
      UserError: no such folder or no class folders in it, a class without images, fewer than two
        classes, a class to be tested that is not trained, nothing to test.
    """
    source = pathlib.Path(source).expanduser()
    if not source.is_dir():
        raise UserError(f"{source} is not a folder; name one that holds a folder for each class")
    names = folders(source)
    if "train" in names or set(names) & set(TEST_FOLDERS):
        class_names, splits = _given_splits(source, names)
    else:
        class_names, splits = _hold_out(source)
    if not splits["test"]:
        raise UserError(f"{source} holds no image to test on; add images, or a folder test/CLASS")
    return Folder(source, class_names, splits)


def _given_splits(
    source: pathlib.Path, names: Sequence[str]
) -> tuple[list[str], dict[str, list[ImageFile]]]:
    """With a folder for each split."""
    test = next((name for name in TEST_FOLDERS if name in names), None)
    if "train" not in names or test is None:
        raise UserError(
            f"{source} holds {', '.join(names)}; it needs train and {' or '.join(TEST_FOLDERS)}: "
            "add what is missing, or put the class folders right there"
        )
    class_names = _class_names(source / "train")
    for name in folders(source / test):
        if name not in class_names:
            raise UserError(
                f"{source / test} has the class {name!r}, but {source / 'train'} has not; add it "
                "there, or remove it here"
            )
    tested = [name for name in class_names if (source / test / name).is_dir()]
    return class_names, {
        "train": _images(source / "train", class_names, class_names),
        "test": _images(source / test, tested, class_names),
    }


def _hold_out(source: pathlib.Path) -> tuple[list[str], dict[str, list[ImageFile]]]:
    """With class folders alone."""
    class_names = _class_names(source)
    splits = {"train": [], "test": []}
    for name in class_names:
        for index, image in enumerate(_images(source, [name], class_names)):
            # The second, so that a class with a single image is trained.
            splits["test" if index % _HELD_OUT == 1 else "train"].append(image)
    logging.info(
        "%s has no folders train and test: the second of every %d images of a class is held out, "
        "%d of %d",
        *(source, _HELD_OUT, len(splits["test"]), sum(map(len, splits.values()))),
    )
    return class_names, splits


def _class_names(folder: pathlib.Path) -> list[str]:
    names = folders(folder)
    if not names:
        raise UserError(f"{folder} holds no class folders; put the images into one for each class")
    if len(names) == 1:
        raise UserError(
            f"{folder} holds a single class folder, {names[0]}; at least two classes are needed"
        )
    return names


def _images(
    folder: pathlib.Path, names: Sequence[str], class_names: Sequence[str]
) -> list[ImageFile]:
    """The images of some of the classes."""
    return [i for name in names for i in image_files(folder / name, class_names.index(name))]
