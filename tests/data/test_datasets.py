import io
import pathlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from toy_datasets import IMAGE, LABEL, examples, png, prepare, random_images

from multipath_jax.data import load_dataset, pixel_statistics
from multipath_jax.errors import UserError


def _error(data_dir) -> str:
    with pytest.raises(UserError) as caught:
        load_dataset("toy", data_dir)
    message = str(caught.value)
    assert "\n" not in message
    return message


def _prepare(data_dir, train, test=None, **features) -> pathlib.Path:
    features = {"image": IMAGE, "label": LABEL} | features
    splits = {"train": train, "test": test or examples(2)}
    return pathlib.Path(prepare(data_dir, splits, features=features))


def test_images_labels_and_names_are_those_written(tmp_path):
    count = 1234  # more records than are read at once
    _prepare(tmp_path, examples(count, seed=1), examples(7, seed=2))
    data = load_dataset("toy", tmp_path)
    np.testing.assert_array_equal(data.train.images, random_images(count, seed=1))
    np.testing.assert_array_equal(data.train.labels, np.arange(count) % 3)
    np.testing.assert_array_equal(data.test.images, random_images(7, seed=2))
    assert (data.train.images.dtype, data.train.labels.dtype) == (np.uint8, np.int32)
    assert data.class_names == ("cat", "dog", "owl")
    assert data.num_classes == 3
    assert data.image_shape == (4, 5, 3)
    assert data.name == "toy"


def test_statistics_are_those_of_the_training_split(tmp_path):
    _prepare(tmp_path, examples(9, seed=1), examples(7, seed=2))
    data = load_dataset("toy", tmp_path)
    pixels = random_images(9, seed=1) / 255
    np.testing.assert_allclose(data.mean, pixels.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(data.std, pixels.std((0, 1, 2)), rtol=1e-6)
    assert data.mean.dtype == data.std.dtype == np.float32


def test_statistics_are_exact():
    # One black pixel among 2**20 white pixels would be lost in float32 sums.
    images = np.full((1024, 32, 32, 1), 255, np.uint8)
    images[0, 0, 0] = 0
    mean, std = pixel_statistics(images)
    p = 2.0**-20
    np.testing.assert_array_equal(mean, np.float32([1 - p]))
    np.testing.assert_array_equal(std, np.float32([np.sqrt(p * (1 - p))]))


def test_a_channel_of_one_colour_has_deviation_one():
    mean, std = pixel_statistics(np.full((3, 2, 2, 1), 51, np.uint8))
    assert (mean.item(), std.item()) == (np.float32(0.2), 1)


def test_validation_stands_in_for_test(tmp_path):
    prepare(tmp_path, {"train": examples(5), "validation": examples(3)})
    assert len(load_dataset("toy", tmp_path).test.labels) == 3


def test_test_goes_before_validation(tmp_path):
    splits = {"train": examples(5), "validation": examples(3), "test": examples(2)}
    prepare(tmp_path, splits)
    assert len(load_dataset("toy", tmp_path).test.labels) == 2


def test_size_may_be_left_open_when_all_images_have_one(tmp_path):
    _prepare(tmp_path, examples(5), image=tfds.features.Image())
    assert load_dataset("toy", tmp_path).image_shape == (4, 5, 3)


def test_grey_and_jpeg_become_the_declared_channels(tmp_path):
    jpeg = io.BytesIO()
    Image.new("CMYK", (5, 4)).save(jpeg, format="jpeg")
    grey = random_images(1, (4, 5, 1))
    rows = [{"image": png(grey[0]), "label": 0}, {"image": jpeg.getvalue(), "label": 1}]
    _prepare(tmp_path, rows)
    images = load_dataset("toy", tmp_path).train.images
    np.testing.assert_array_equal(images[0], np.repeat(grey[0], 3, axis=-1))
    np.testing.assert_array_equal(images[1], 255)  # white, since there is no ink


@pytest.mark.parametrize(
    ("splits", "listed"),
    [({"train": 3}, "'train'"), ({"test": 3, "validation": 2}, "'test', 'validation'")],
)
def test_missing_split(tmp_path, splits, listed):
    folder = prepare(tmp_path, {split: examples(count) for split, count in splits.items()})
    message = _error(tmp_path)
    assert message.startswith(f"{folder} has the splits {listed}, but 'train' and 'test'")


@pytest.mark.parametrize(
    ("features", "missing"),
    [
        ({"picture": IMAGE, "label": LABEL}, "'image'"),
        ({"image": IMAGE, "class": LABEL}, "'label'"),
        ({"image": IMAGE, "label": tfds.features.Scalar(np.int64)}, "'label'"),
    ],
)
def test_missing_feature(tmp_path, features, missing):
    rows = [dict(zip(features, row.values(), strict=True)) for row in examples(3)]
    folder = prepare(tmp_path, {"train": rows, "test": rows}, features=features)
    message = _error(tmp_path)
    assert message.startswith(f"{folder} has no feature {missing} of the kind")
    assert all(repr(name) in message for name in features)


def test_images_of_16_bits(tmp_path):
    _prepare(tmp_path, examples(3), image=tfds.features.Image(shape=(4, 5, 3), dtype=np.uint16))
    assert "are of type uint16, not uint8; prepare" in _error(tmp_path)


def test_images_of_two_sizes(tmp_path):
    rows = examples(4) + examples(1, (5, 5, 3))
    _prepare(tmp_path, rows, image=tfds.features.Image())
    message = _error(tmp_path)
    assert "record 0 of 'train' is (4, 5, 3), record 4 is (5, 5, 3); prepare" in message


def test_splits_of_two_sizes(tmp_path):
    _prepare(tmp_path, examples(3), examples(3, (5, 5, 3)), image=tfds.features.Image())
    message = _error(tmp_path)
    assert "are (4, 5, 3) in the training split and (5, 5, 3) in the other; prepare" in message


def test_unlabelled_split(tmp_path):
    rows = [row | {"label": -1} for row in examples(3)]
    _prepare(tmp_path, examples(3), rows)
    assert "record 0 of 'test'" in (message := _error(tmp_path))
    assert "has the label -1, not one of 0 to 2; choose" in message


@pytest.mark.parametrize("image", [b"no image", b"", png(random_images(1)[0])[:60]])
def test_damaged_image(tmp_path, image):
    rows = [*examples(2), {"image": image, "label": 0}]
    folder = _prepare(tmp_path, rows)
    message = _error(tmp_path)
    assert message.startswith(f"record 2 of 'train' in {folder} cannot be read (")
    assert message.endswith(f"remove it with `rm -r {folder}` and rerun the command")


def _flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 100] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        _flip_a_byte,
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        lambda path: path.write_bytes(b""),
        lambda path: path.unlink(),
    ],
    ids=["flipped byte", "cut off", "empty", "gone"],
)
def test_damaged_file(tmp_path, damage):
    folder = _prepare(tmp_path, examples(600))
    damage(next(folder.glob("toy-train*")))
    message = _error(tmp_path)
    assert message.startswith(f"a record from 0 to 599 of 'train' in {folder} cannot be read (")
    assert message.endswith(f"remove it with `rm -r {folder}` and rerun the command")
