"""Small TFDS data sets, written without TensorFlow."""

import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

LABEL = tfds.features.ClassLabel(names=["cat", "dog", "owl"])
IMAGE = tfds.features.Image(shape=(4, 5, 3))


def png(image: np.ndarray) -> bytes:
    encoded = io.BytesIO()
    Image.fromarray(image.squeeze()).save(encoded, format="png")
    return encoded.getvalue()


def random_images(count: int, shape=(4, 5, 3), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


def examples(count: int, shape=(4, 5, 3), seed: int = 0) -> list[dict]:
    images = random_images(count, shape, seed)
    return [{"image": png(image), "label": i % 3} for i, image in enumerate(images)]


def prepare(data_dir, splits: dict[str, list[dict]], *, name="toy", features=None) -> str:
    """Writes a data set and returns its folder."""

    class Toy(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            wanted = features or {"image": IMAGE, "label": LABEL}
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(wanted),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(rows) for split, rows in splits.items()}

        def _generate_examples(self, rows):
            yield from enumerate(rows)

    Toy.name = name
    tfds.disable_progress_bar()
    builder = Toy(data_dir=data_dir)
    builder.download_and_prepare(file_format="array_record")
    return builder.data_dir


def prepare_two(data_dir) -> None:
    """Writes the data sets ``toy`` (4x5x3 pixels) and ``gray`` (6x6x1), with three classes each."""
    for name, shape, counts in (("toy", (4, 5, 3), (40, 9)), ("gray", (6, 6, 1), (20, 6))):
        splits = {
            split: examples(count, shape, seed)
            for seed, (split, count) in enumerate(zip(("train", "test"), counts, strict=True))
        }
        features = {"image": tfds.features.Image(shape=shape), "label": LABEL}
        prepare(data_dir, splits, name=name, features=features)
