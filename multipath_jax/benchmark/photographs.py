"""A data set of synthetic JPEGs that take as long to decode as photographs."""

import contextlib
import io
from collections.abc import Sequence

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8
from PIL import Image

from multipath_jax.data.images import encode

TEST = 2  # images in the test split, which is not used


def photograph(seed: int, width: int, height: int) -> UInt8[np.ndarray, "h w 3"]:
    """Noise with an amplitude of 1/f, as in natural images, ``[height width 3]``."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = 1.0  # the mean is set below
    spectrum = np.fft.rfft2(rng.normal(size=(3, height, width))) / frequency
    waves = np.fft.irfft2(spectrum, (height, width))
    # Color varies less than brightness.
    brightness, colors = waves[:1], 0.3 * waves[1:]
    pixels = np.concatenate([brightness, brightness + colors])
    pixels = 128 + 20 * (pixels - pixels.mean()) / pixels.std()
    return np.moveaxis(pixels, 0, -1).clip(0, 255).astype(np.uint8)


def encoded(count: int, width: int, height: int) -> list[bytes]:
    """JPEGs of quality 95."""
    return [encode(Image.fromarray(photograph(seed, width, height))) for seed in range(count)]


class Photographs(tfds.core.GeneratorBasedBuilder):
    """A data set of given JPEGs, with 1,000 classes."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, images: Sequence[bytes] = (), **options):
        self._images = images
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Synthetic photographs.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(num_classes=1000),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {
            "train": self._generate_examples(self._images),
            "test": self._generate_examples(self._images[:TEST]),
        }

    def _generate_examples(self, images):
        for index, image in enumerate(images):
            yield index, {"image": image, "label": index % 1000}


def prepare(data_dir: str, images: Sequence[bytes]) -> str:
    """Prepares the data set in a folder and returns its name for ``config.dataset.name``."""
    tfds.disable_progress_bar()
    builder = Photographs(data_dir=data_dir, images=images)
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS would report a download
        builder.download_and_prepare(file_format="array_record")
    return builder.name
