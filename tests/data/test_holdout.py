"""Held-out training images that replace the test split: their selection and their sources."""

import pathlib

import numpy as np
import photos
import pytest
import toy_datasets
from google.protobuf.message import DecodeError

from multipath_jax.data import load_dataset, open_encoded, records
from multipath_jax.data.datasets import held_out_indices
from multipath_jax.errors import UserError


def test_every_class_gives_its_share():
    labels = np.random.default_rng(0).choice(4, 1000, p=[0.1, 0.2, 0.3, 0.4]).astype(np.int32)
    kept, held = held_out_indices(labels, 200)
    assert sorted([*kept, *held]) == list(range(1000))
    assert (np.diff(kept) > 0).all()
    assert (np.diff(held) > 0).all()
    shares = np.bincount(labels[held]) / np.bincount(labels)
    np.testing.assert_allclose(np.bincount(labels[held]), np.bincount(labels) / 5, atol=1)
    assert shares.min() > 0.15


def test_which_ones_is_always_the_same_and_no_pattern():
    """Compares with recorded indices: 5,000 held out of 50,000 images in ten classes (CIFAR-10)."""
    labels = np.tile(np.arange(10, dtype=np.int32), 5000)
    _, held = held_out_indices(labels, 5000)
    np.testing.assert_array_equal(np.bincount(labels[held]), [500] * 10)
    assert held[:6].tolist() == [3, 6, 19, 21, 23, 25]
    # Gaps between held-out images of a class are geometric: standard deviation and mean are ~10.
    gaps = np.diff(np.flatnonzero(np.isin(np.flatnonzero(labels == 3), held)))
    assert 8 < gaps.std() < 11


@pytest.mark.parametrize("count", [9, 10])
def test_something_must_be_left_to_train_on(count):
    with pytest.raises(UserError, match=f"holdout={count} leaves none of the 9"):
        held_out_indices(np.zeros(9, np.int32), count)


def test_a_set_in_memory_is_divided_and_its_test_split_left_alone(tmp_path):
    folder = toy_datasets.prepare(
        tmp_path,
        {"train": toy_datasets.examples(30, seed=1), "test": toy_datasets.examples(7, seed=2)},
    )
    whole = load_dataset("toy", tmp_path)
    (file,) = pathlib.Path(folder).glob("toy-test*")
    file.write_bytes(b"")  # reading it fails
    found = load_dataset("toy", tmp_path, holdout=6)
    kept, held = held_out_indices(whole.train.labels, 6)
    for split, indices in ((found.train, kept), (found.test, held)):
        np.testing.assert_array_equal(split.images, whole.train.images[indices])
        np.testing.assert_array_equal(split.labels, whole.train.labels[indices])
    np.testing.assert_array_equal(np.bincount(found.test.labels), [2, 2, 2])
    pixels = whole.train.images[kept] / 255
    np.testing.assert_allclose(found.mean, pixels.mean((0, 1, 2)), rtol=1e-6)  # float32 rounding
    assert (found.evaluated, whole.evaluated) == ("held_out", "test")


@pytest.mark.parametrize("folder", [False, True])
def test_a_set_that_stays_encoded_is_divided_too(folder, tmp_path):
    rows = photos.rows(22)
    if folder:
        for index, row in enumerate(rows):
            for split in ("train", "test"):
                parent = tmp_path / split / photos.NAMES[row["label"]]
                parent.mkdir(parents=True, exist_ok=True)
                (parent / f"{index:02}.jpg").write_bytes(row["image"])
    else:
        photos.prepare(tmp_path, rows, photos.rows(7, seed=1))
    source = tmp_path if folder else None
    options = {"size": 16, "source": source}
    whole = open_encoded("photos", tmp_path, **options).train.load(np.arange(22))
    tested = [tmp_path / "test"] if folder else tmp_path.glob("photos/*/photos-test*")
    for path in tested:  # reading an image of the test split fails
        for file in path.rglob("*.jpg") if folder else [path]:
            file.write_bytes(b"damaged")
    found = open_encoded("photos", tmp_path, **options, holdout=6)
    kept, held = held_out_indices(whole.labels, 6)
    for split, indices in ((found.train, kept), (found.test, held)):
        assert len(split) == len(indices)
        loaded = split.load(np.arange(len(indices)))
        np.testing.assert_array_equal(loaded.images, whole.images[indices])
        np.testing.assert_array_equal(loaded.labels, whole.labels[indices])
    assert found.evaluated == "held_out"


def test_a_record_that_cannot_be_read_is_not_held_out(tmp_path, monkeypatch):
    """The label of such a record is unknown."""
    rows = photos.rows(22)
    photos.prepare(tmp_path, rows, rows[:7])
    honest = records._parse
    bad = {row["image"] for row in rows[::2]}

    def parse(record):
        found = honest(record)
        if found.image in bad:
            raise DecodeError("damaged")
        return found

    monkeypatch.setattr(records, "_parse", parse)
    even = np.zeros(3, np.float32), np.ones(3, np.float32)
    monkeypatch.setattr("multipath_jax.data.datasets._sampled_statistics", lambda split: even)
    found = open_encoded("photos", tmp_path, 16, holdout=6)
    assert len(found.test.load(np.arange(6)).labels) == 6
    with pytest.raises(UserError, match=r"holdout=11 leaves none of the 11"):
        open_encoded("photos", tmp_path, 16, holdout=11)
