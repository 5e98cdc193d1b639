"""A small data set of real images in CIFAR-10's shape, for --smoke."""

import contextlib
import io
import os

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8
from PIL import Image

from multipath_jax.data import load_dataset
from multipath_jax.data.datasets import Split
from multipath_jax.errors import UserError
from multipath_jax.utils import filesystem

NAME = "sample"
SIZES = {"train": 32, "test": 16}
SIDE = 32


def prepare(folder: os.PathLike | str, data_dir: str) -> str:
    """Prepares the data set `sample` in a folder, unless it exists.

    Args:
      folder: the folder.
      data_dir: a TFDS data directory; if it has no CIFAR-10, enlarged digits are used.

    Returns:
      The name of the data set from which the images are.

    Raises:
      UserError: the folder cannot be written.
    """
    there = data_dir and (filesystem.path("--data_dir", data_dir) / "cifar10").is_dir()
    source = "cifar10" if there else "digits"
    dataset = load_dataset(source, data_dir if source == "cifar10" else folder)
    splits = {"train": dataset.train, "test": dataset.test}
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            _write(folder, splits, dataset.class_names)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror or error})") from error
    return source


def _write(folder, splits: dict[str, Split], class_names: tuple[str, ...]) -> None:
    class Sample(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = NAME
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(SIDE, SIDE, 3), encoding_format="png"),
                "label": tfds.features.ClassLabel(names=class_names),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in SIZES}

        def _generate_examples(self, split):
            images, labels = splits[split].images, splits[split].labels
            for index in range(SIZES[split]):
                yield index, {"image": _png(enlarge(images[index])), "label": int(labels[index])}

    tfds.disable_progress_bar()
    Sample(data_dir=folder).download_and_prepare(file_format="array_record")


def enlarge(image: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "32 32 3"]:
    """Enlarges an image by repeating pixels and channels."""
    factor = SIDE // len(image)
    channels = 3 // image.shape[-1]
    return np.kron(image, np.ones((factor, factor, 1), np.uint8)).repeat(channels, axis=-1)


def _png(image: UInt8[np.ndarray, "h w c"]) -> io.BytesIO:
    """Encodes an image as a PNG, which TFDS stores without TensorFlow."""
    encoded = io.BytesIO()
    Image.fromarray(image).save(encoded, format="png")
    encoded.seek(0)
    return encoded
