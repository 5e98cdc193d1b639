"""scikit-learn's 1,797 handwritten digits as a TFDS data set: no download, no TensorFlow."""

import collections
import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

_TEST_EVERY = 5  # every fifth example of each class is held out


class Digits(tfds.core.GeneratorBasedBuilder):
    """Grayscale images of 8x8 pixels, 10 classes; a fifth of each class is the test split.

    The split follows the order of the file that scikit-learn ships, so it is the same on every
    machine.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="8x8 handwritten digits, from the UCI repository through scikit-learn.",
            homepage="https://archive.ics.uci.edu/dataset/80",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):
        from sklearn.datasets import load_digits  # takes two seconds to import

        digits = load_digits()
        held_out = _held_out(digits.target)
        return {
            "train": self._generate_examples(digits, np.flatnonzero(~held_out)),
            "test": self._generate_examples(digits, np.flatnonzero(held_out)),
        }

    def _generate_examples(self, digits, indices):
        for index in map(int, indices):
            yield index, {"image": _png(digits.images[index]), "label": int(digits.target[index])}


def _held_out(labels: np.ndarray) -> np.ndarray:
    """A mask `[n]` that is True for every fifth example of each class."""
    seen = collections.Counter()
    held_out = np.zeros(len(labels), bool)
    for index, label in enumerate(labels.tolist()):
        seen[label] += 1
        held_out[index] = seen[label] % _TEST_EVERY == 0
    return held_out


def _png(image: np.ndarray) -> io.BytesIO:
    """Encodes values from 0 to 16 as an 8-bit PNG, which TFDS stores without TensorFlow."""
    pixels = np.rint(image * (255 / 16)).astype(np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, format="png")
    encoded.seek(0)
    return encoded


def prepare_digits(data_dir: str) -> None:
    """Prepares the digits in `data_dir`, if they are not there yet.

    TFDS writes to a temporary folder and renames it at the end, so an interruption leaves no
    incomplete data set.

    Args:
      data_dir: the TFDS data directory.

    Raises:
      OSError: the files cannot be written.
    """
    builder = Digits(data_dir=data_dir)
    try:
        builder.download_and_prepare(file_format="array_record")
    except OSError:
        # Of two processes that prepare concurrently, the second cannot rename; the data are there.
        if not builder.is_prepared():
            raise
