"""Descriptions of data sets: reading and writing them, and finding differences."""

import dataclasses
import os
import shutil

import numpy as np
import photos
import pytest
import toy_datasets

from multipath_jax.data import describe, load_dataset, open_encoded
from multipath_jax.data.description import (
    Description,
    Examples,
    differences,
    read_description,
    to_json,
)

TRAINED = Description(
    name="pets",
    class_names=("cat", "dog"),
    stored_shape=(32, 32, 3),
    image_shape=(24, 24, 3),
    dtype="uint8",
    mean=np.float32([0.1, 0.2, 0.3]),
    std=np.float32([0.3, 0.2, 0.1]),
    train=Examples(1203, "aa"),
    test=Examples(120, "bb"),
    shares=(6, 10),
)
NAMES = tuple(f"class {number}" for number in range(1000))


@pytest.mark.parametrize(
    ("key", "now", "words"),
    [
        ("class_names", ("cat", "wolf"), "class names: dog -> wolf"),
        ("class_names", ("ant", "cat", "dog"), "classes added: ant"),
        ("class_names", ("cat",), "classes removed: dog"),
        ("class_names", ("cat", "dog", "a\nb"), r"classes added: a\nb"),
        ("class_names", ("dog", "cat"), "order of the classes: cat, dog -> dog, cat"),
        ("dtype", "float32", "type of the pixels: uint8 -> float32"),
        ("stored_shape", (32, 24, 3), "shape of the images: 32x32x3 -> 32x24x3"),
        ("train", Examples(1204, "cc"), "1,203 -> 1,204 training images"),
        ("train", Examples(1203, "cc"), "different training images: aa -> cc"),
        ("test", Examples(121, "cc"), "120 -> 121 evaluation images"),
        ("test", Examples(120, "cc"), "different evaluation images: bb -> cc"),
        ("shares", (8, 8), "images of each data set in an epoch: 6, 10 -> 8, 8"),
        (
            "mean",
            np.float32([0.1, 0.25, 0.3]),
            "mean of the training pixels: 0.1000, 0.2000, 0.3000 -> 0.1000, 0.2500, 0.3000",
        ),
        (
            "std",
            np.float32([0.3, 0.2, 0.2]),
            "deviation of the training pixels: 0.3000, 0.2000, 0.1000 -> ",
        ),
    ],
)
def test_what_differs_is_named(key, now, words):
    found = differences(TRAINED, dataclasses.replace(TRAINED, **{key: now}))
    assert found.keys() == {key}
    assert found[key].startswith(words)


def test_where_it_lies_and_what_a_decoder_rounds_make_no_difference():
    elsewhere = dataclasses.replace(TRAINED, name="moved", mean=TRAINED.mean + np.float32(2e-4))
    assert differences(TRAINED, elsewhere) == {}
    assert differences(dataclasses.replace(TRAINED, shares=()), TRAINED) == {}  # of older runs


def test_many_classes_are_not_all_listed():
    before, now = (dataclasses.replace(TRAINED, class_names=n) for n in (("x",), NAMES))
    words = differences(before, now)["class_names"]
    assert words.endswith("class 4, and 995 more")


def test_it_comes_back_to_the_bit(tmp_path):
    third = dataclasses.replace(TRAINED, mean=np.float32([1 / 3, 1e-9, 1]))
    (tmp_path / "dataset.json").write_text(to_json(third))
    found = read_description(tmp_path / "dataset.json")
    for field in dataclasses.fields(Description):
        np.testing.assert_array_equal(getattr(found, field.name), getattr(third, field.name))
    assert found.mean.dtype == found.std.dtype == np.float32


def test_images_in_memory_are_told_apart_by_labels_and_pixels(tmp_path):
    splits = {split: toy_datasets.examples(7) for split in ("train", "test")}
    toy_datasets.prepare(tmp_path, splits)
    split = load_dataset("toy", tmp_path).train
    again = load_dataset("toy", tmp_path).train
    assert split.fingerprint == again.fingerprint
    again.images[3, 2, 1, 0] ^= 1
    pixel = again.fingerprint
    again.images[3, 2, 1, 0] ^= 1
    again.labels[3] += 1
    assert len({split.fingerprint, pixel, again.fingerprint}) == 3


def test_encoded_sets_are_told_apart_by_their_version(tmp_path):
    photos.prepare(tmp_path, photos.rows(6), photos.rows(6, seed=1))
    described = describe(open_encoded("photos", tmp_path, 16))
    assert described.train == described.test == Examples(6, "photos/1.0.0")
    shutil.copytree(tmp_path / "photos" / "1.0.0", tmp_path / "photos" / "2.0.0")
    for path in (tmp_path / "photos" / "2.0.0").iterdir():
        path.write_bytes(path.read_bytes().replace(b'"1.0.0"', b'"2.0.0"'))
    newer = describe(open_encoded("photos", tmp_path, 16))
    assert differences(described, newer) == {
        "train": "different training images: photos/1.0.0 -> photos/2.0.0",
        "test": "different evaluation images: photos/1.0.0 -> photos/2.0.0",
    }


@pytest.fixture
def folder(tmp_path):
    for number, row in enumerate(photos.rows(24)):
        path = tmp_path / "mine" / photos.NAMES[row["label"]] / f"{number:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(row["image"])
    return tmp_path / "mine"


def _of(folder):
    return describe(open_encoded("folder", None, 16, source=folder))


def test_a_copy_of_a_folder_holds_the_same(folder):
    trained, copied = _of(folder), shutil.copytree(folder, folder.parent / "copied")
    for path in copied.rglob("*.jpg"):
        os.utime(path, (0, 0))
    assert differences(trained, _of(copied)) == {}


@pytest.mark.parametrize(
    ("old", "new", "differing"),
    [
        ("red/00.jpg", "red/01.jpg", {"train"}),  # another file name
        ("red/00.jpg", "red/99.jpg", {"train", "test"}),  # another image is held out for testing
        ("red/00.jpg", "blue/00.jpg", {"train", "test"}),
        ("red", "purple", {"class_names"}),
    ],
)
def test_another_folder_is_told_apart(folder, old, new, differing):
    trained = _of(folder)
    (folder / old).rename(folder / new)
    found = differences(trained, _of(folder))
    assert differing <= found.keys() <= differing | {"mean", "std"}


def test_a_file_of_another_size_is_told_apart(folder):
    trained, path = _of(folder), folder / "red" / "00.jpg"
    path.write_bytes(path.read_bytes() + b"\0")
    assert differences(trained, _of(folder)).keys() == {"train"}
