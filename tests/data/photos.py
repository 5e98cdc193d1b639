"""Small data sets of JPEGs that may differ in size, with one color per class."""

import io

import numpy as np
import tensorflow_datasets as tfds
import toy_datasets
from PIL import Image

NAMES = ("red", "green", "blue", "yellow", "pink", "grey")
COLORS = np.array(
    [[200, 40, 40], [40, 200, 40], [40, 40, 200], [200, 200, 40], [220, 120, 160], [120, 120, 120]]
)
FEATURES = {
    "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
    "label": tfds.features.ClassLabel(names=NAMES),
}


def jpeg(seed: int, label: int, width: int = 40, height: int = 30) -> bytes:
    """A JPEG of waves of brightness in the color of the class."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = 40 * np.sin(x / rng.uniform(2, 9) + y / rng.uniform(2, 9) + rng.uniform(0, 6))
    pixels = COLORS[label] + waves[..., None] + rng.normal(0, 5, (height, width, 1))
    stream = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(stream, "jpeg", quality=95)
    return stream.getvalue()


def rows(count: int, seed: int = 0, **size) -> list[dict]:
    labels = [index % len(NAMES) for index in range(count)]
    return [
        {"image": jpeg(1000 * seed + index, label, **size), "label": label}
        for index, label in enumerate(labels)
    ]


def prepare(data_dir, train: list[dict], test: list[dict], name: str = "photos") -> str:
    """Writes a data set and returns its folder."""
    splits = {"train": train, "test": test}
    return toy_datasets.prepare(data_dir, splits, name=name, features=FEATURES)
