"""Prediction, figures and exports use exactly the same pixels as evaluation."""

import argparse
import dataclasses
import io
import os
import pathlib
import sys

import flax.linen as nn
import jax
import jax.export
import numpy as np
import pytest
from etils import epath
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).parent / "data"))
import photos
import tensorflow_datasets as tfds
import toy_datasets

from multipath_jax import export, pictures
from multipath_jax.config.keys import default_config
from multipath_jax.data import EncodedSplit, describe
from multipath_jax.data.prepared import open_prepared
from multipath_jax.data.records import Records
from multipath_jax.figures.inputs import FigureInputs
from multipath_jax.runs import LoadedRun
from multipath_jax.training.setup import cropped_shape, read_dataset

COUNT = 9  # number of test images
# Kinds of data sets, and the keys of `dataset` that select, rescale and crop them.
KINDS = {
    "digits": {"name": "digits"},
    "digits, cropped": {"name": "digits", "crop": 6},
    "not square": {"name": "wide"},
    "not square, cropped": {"name": "wide", "crop": 5},
    "grey, not square": {"name": "grey"},
    "with alpha, cropped": {"name": "alpha", "crop": 5},
    "turned JPEGs": {"name": "turned"},
    "JPEGs of one size": {"name": "photos"},
    "encoded": {"name": "photos", "size": 32, "crop": 24},
    "encoded, of that size": {"name": "square", "size": 32, "crop": 25},
    "encoded, grey": {"name": "grey", "size": 16},
    "folder": {"source": "folder", "size": 32, "crop": 24},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with all data sets except the digits."""
    folder = tmp_path_factory.mktemp("sets")
    for name, shape in {"wide": (6, 10, 3), "grey": (9, 7, 1), "alpha": (6, 10, 4)}.items():
        splits = {
            split: toy_datasets.examples(COUNT, shape, seed)
            for seed, split in enumerate(("train", "test"))
        }
        features = {"image": tfds.features.Image(shape=shape), "label": toy_datasets.LABEL}
        toy_datasets.prepare(folder, splits, name=name, features=features)
    photos.prepare(folder, photos.rows(COUNT), photos.rows(COUNT, seed=1))
    square = [photos.rows(COUNT, seed=seed, width=32, height=32) for seed in (0, 1)]
    photos.prepare(folder, *square, name="square")
    for rows in square:
        for row in rows:
            row["image"] = turned(row["image"])
    photos.prepare(folder, *square, name="turned")
    for split, seed in {"train": 0, "test": 1}.items():
        for number, row in enumerate(photos.rows(COUNT, seed=seed)):
            path = folder / "folder" / split / photos.NAMES[row["label"]] / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(row["image"])
    return folder


def turned(encoded):
    """The same JPEG, with the EXIF orientation of a camera that was held on its side."""
    exif, stream = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.open(io.BytesIO(encoded)).save(stream, "jpeg", quality=95, exif=exif)
    return stream.getvalue()


class Pixels(nn.Module):
    """A network whose logits are its input, which it also passes to the function ``show``."""

    show: object = None

    @nn.compact
    def __call__(self, images, train=False):
        if self.show:
            self.show(images)
        return images.reshape(images.shape[0], -1)


@pytest.fixture(scope="module", params=KINDS)
def run(request, folder, data_dir):
    """A run with the network `Pixels` on one of the data sets."""
    config = default_config()
    config.dataset.data_dir = os.fspath(folder)
    config.dataset.workers = 0
    config.dataset.update(KINDS[request.param])
    if config.dataset.source:
        config.dataset.source = os.fspath(folder / config.dataset.source)
    if config.dataset.name == "digits":
        config.dataset.data_dir = os.fspath(data_dir)
    dataset = read_dataset(config.dataset)
    described = describe(dataset, cropped_shape(dataset, config.dataset.crop))
    return LoadedRun(epath.Path(folder), config, 0, Pixels(), {}, described)


def pixels(run, normal):
    """Reverts the normalization of images; returns their pixels as uint8."""
    images = np.asarray(normal).reshape(-1, *run.description.image_shape)
    found = 255 * (images * run.description.std + run.description.mean)
    assert np.abs(found - np.rint(found)).max() < 1e-3  # float32 rounding of numbers up to 255
    return np.rint(found).astype(np.uint8)


@pytest.fixture(scope="module")
def evaluated(run):
    """The pixels of the test images that the network gets in evaluation."""
    seen = []
    with jax.disable_jit():  # so that `show` gets values instead of tracers
        dataclasses.replace(run, model=Pixels(lambda images: seen.append(images))).evaluate()
    assert len(seen) == 1  # a single, padded batch
    found = pixels(run, seen[0])[: len(run.dataset.test)]
    assert found.std() > 10
    return found


def files(run):
    """The encoded test images, as they are stored in the data set."""
    split, how = run.dataset.test, run.config.dataset
    if not isinstance(split, EncodedSplit):
        builder = open_prepared(how.name, how.data_dir)
        records = Records(builder, "test")
    else:
        records = split.records
    return [records[number].image for number in range(len(split))]


def test_a_picture_is_seen_as_in_evaluation(run, evaluated, tmp_path):
    for encoded, expected in zip(files(run), evaluated, strict=True):
        (tmp_path / "picture").write_bytes(encoded)
        np.testing.assert_array_equal(pictures.read(tmp_path / "picture", run), expected)


def test_stored_pixels_as_png_are_seen_as_in_evaluation(run, evaluated, tmp_path):
    split = run.dataset.test
    whole = split.load(np.arange(len(split))).images if run.config.dataset.size else split.images
    for image, expected in zip(whole, evaluated, strict=True):
        (tmp_path / "picture.png").write_bytes(toy_datasets.png(image))
        np.testing.assert_array_equal(pictures.read(tmp_path / "picture.png", run), expected)


def test_figures_see_the_same(run, evaluated):
    subject = FigureInputs(run, argparse.Namespace(limit=None))
    np.testing.assert_array_equal(subject.test.images, evaluated)
    np.testing.assert_array_equal(pixels(run, run.logits(subject.test.images)), evaluated)


def test_the_exported_file_sees_the_same(run, evaluated):
    network = jax.export.deserialize(bytearray(export.artifact(run)))
    split = run.dataset.test
    whole = split.load(np.arange(len(split))).images if run.config.dataset.size else split.images
    np.testing.assert_array_equal(pixels(run, network.call(whole)), evaluated)


def test_a_picture_of_another_size_is_brought_to_the_stored_one(run, tmp_path):
    """It is rescaled as a whole, whatever its aspect ratio: an edge in the middle stays there."""
    halves = np.zeros((60, 300, 3), np.uint8)
    halves[:, 150:] = 255
    Image.fromarray(halves).save(tmp_path / "halves.png")
    found = pictures.read(tmp_path / "halves.png", run)[..., 0].astype(int)
    assert found.shape == run.description.image_shape[:2]
    assert (found == found[0]).all()
    side = run.description.stored_shape[1]
    offset = (side - len(found[0])) // 2
    centres = (np.arange(offset, offset + len(found[0])) + 0.5) / side
    # Lanczos resampling overshoots next to the edge; on the edge, it gives the mean of both sides.
    assert (found[0][centres < 0.5] < 30).all()
    assert (found[0][centres > 0.5] > 225).all()
    assert (abs(found[0][centres == 0.5] - 127.5) < 2).all()
