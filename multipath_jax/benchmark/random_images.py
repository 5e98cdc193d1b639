"""A data set of random images, prepared by TFDS, for timing whole runs."""

import contextlib
import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

TEST = 100  # images in the test split


class RandomImages(tfds.core.GeneratorBasedBuilder):
    """RGB noise of 32x32 pixels with 10 classes; ``count`` is the size of the training split."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, count: int = 1000, **options):
        self._count = count
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Random images.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(32, 32, 3), encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {
            "train": self._generate_examples(0, self._count),
            "test": self._generate_examples(1, TEST),
        }

    def _generate_examples(self, seed, count):
        generator = np.random.default_rng(seed)
        for index in range(count):
            pixels = generator.integers(256, size=(32, 32, 3), dtype=np.uint8)
            encoded = io.BytesIO()
            Image.fromarray(pixels).save(encoded, format="png")
            encoded.seek(0)
            yield index, {"image": encoded, "label": int(generator.integers(10))}


def prepare(data_dir: str, count: int) -> str:
    """Prepares the data set in a folder and returns its name for ``config.dataset.name``."""
    tfds.disable_progress_bar()
    builder = RandomImages(data_dir=data_dir, count=count)
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS would report a download
        builder.download_and_prepare(file_format="array_record")
    return builder.name
