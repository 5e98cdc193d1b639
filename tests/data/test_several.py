"""Joined data sets: their image shape, classes and statistics, and the mixture in batches."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_datasets
from PIL import Image

from multipath_jax import data
from multipath_jax.data import several
from multipath_jax.data.description import describe, differences, read_description, to_json
from multipath_jax.data.order import divided, interleaved, mixed_order
from multipath_jax.errors import UserError

KEY = jax.random.key(0)
SIZES, SHARES, BATCH = (30, 11, 3), (20, 12, 12), 8


def arrays(name="a", count=12, shape=(4, 5, 3), classes=3, seed=0, dtype=np.uint8):
    images = toy_datasets.random_images(count, shape, seed).astype(dtype)
    labels = np.arange(count) % classes
    names = [f"{name}{number}" for number in range(classes)]
    half = count // 2
    return data.from_arrays(
        images[half:], labels[half:], images[:half], labels[:half], class_names=names, name=name
    )


# The order


def owners(order):
    """Returns the index of the data set of each example."""
    return np.searchsorted(np.cumsum(SIZES), order, side="right")


compiled = jax.jit(mixed_order, static_argnums=(2, 3, 4))


def orders(epochs, shares=SHARES, key=KEY):
    return [np.asarray(compiled(key, epoch, SIZES, shares, BATCH)) for epoch in range(epochs)]


def test_every_batch_has_the_proportions():
    for order in orders(3):
        assert len(order) == sum(SIZES)
        np.testing.assert_array_equal(np.bincount(owners(order)), SHARES)
        for start in range(0, len(order) - BATCH + 1, BATCH):
            counts = np.bincount(owners(order[start : start + BATCH]), minlength=3)
            expected = BATCH * np.array(SHARES) / sum(SIZES)
            assert np.abs(counts - expected).max() <= 2  # d - 1 for d data sets


def test_no_example_is_repeated_before_all_were_used():
    """Over epochs, the counts of any two examples of a data set differ by at most one."""
    found = np.zeros(sum(SIZES), int)
    for order in orders(7):
        np.add.at(found, order, 1)
        for counts in np.split(found, np.cumsum(SIZES)[:-1]):
            assert counts.max() - counts.min() <= 1
    assert found[-1] == 7 * 12 // 3


def test_by_size_an_epoch_has_every_example_once():
    for order in orders(2, SIZES):
        np.testing.assert_array_equal(np.sort(order), np.arange(sum(SIZES)))


def test_batches_are_shuffled():
    """Otherwise, each position in the batches would belong to the same data set in all epochs."""
    found = np.stack([owners(order) for order in orders(4)])
    assert len(np.unique(found, axis=0)) == 4
    assert not np.array_equal(found[0], owners(*orders(1, key=jax.random.key(1))))


def test_an_epoch_that_is_not_traced_has_the_same_order():
    found = mixed_order(KEY, 5, SIZES, SHARES, BATCH)
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, orders(6)[5])


def test_sequences_are_interleaved_evenly():
    assert interleaved([4, 2]).tolist() == [0, 4, 1, 2, 5, 3]


@pytest.mark.parametrize(
    ("total", "weights", "parts"),
    [
        (10, [1, 1, 1], [4, 3, 3]),
        (76442, [50000, 25000, 1442], [50000, 25000, 1442]),
        (7, [0.1, 0.2, 0.7], [1, 1, 5]),
        (1, [1, 3], [0, 1]),
    ],
)
def test_a_number_is_divided_by_weights(total, weights, parts):
    assert divided(total, weights) == parts


# The data set


@pytest.fixture(scope="module")
def joined():
    return data.join(arrays("a"), arrays("b", 20, (6, 3, 1), classes=2, seed=1))


def test_images_are_brought_to_one_shape(joined):
    assert joined.image_shape == (6, 5, 3)
    one, gray = arrays("a"), arrays("b", 20, (6, 3, 1), classes=2, seed=1)
    for split in ("train", "test"):
        images = getattr(joined, split).images
        for number, image in enumerate(getattr(one, split).images):
            expected = Image.fromarray(image).resize((5, 6), Image.Resampling.LANCZOS)
            np.testing.assert_array_equal(images[number], expected)
        count = len(getattr(one, split))
        for number, image in enumerate(getattr(gray, split).images[..., 0]):
            expected = Image.fromarray(image).resize((5, 6), Image.Resampling.LANCZOS)
            np.testing.assert_array_equal(images[count + number], np.stack([expected] * 3, -1))


def test_classes_are_numbered_over_all_data_sets(joined):
    assert joined.name == "a+b"
    assert joined.class_names == ("a/a0", "a/a1", "a/a2", "b/b0", "b/b1")
    assert joined.heads == data.Heads(("a", "b"), (3, 2))
    expected = [*arrays("a").test.labels, *(3 + arrays("b", 20, classes=2).test.labels)]
    assert joined.test.labels.tolist() == expected
    assert joined.test.labels.dtype == np.int32


def test_a_label_determines_the_head(joined):
    heads = joined.heads
    assert heads.columns(0) == slice(0, 3)
    assert heads.columns(1) == slice(3, 5)
    labels = jnp.array([2, 3, 0])
    assert heads.numbers(labels).tolist() == [0, 1, 0]
    first, second = [True, True, True, False, False], [False, False, False, True, True]
    assert heads.own(labels).tolist() == [first, second, first]


def test_every_data_set_has_its_own_statistics(joined):
    assert joined.mean.shape == joined.std.shape == (2, 3)
    for number, part in enumerate(joined.parts):
        pixels = part.train.images / 255
        np.testing.assert_allclose(joined.mean[number], pixels.mean((0, 1, 2)), rtol=1e-5)
        np.testing.assert_allclose(part.std, pixels.std((0, 1, 2)), rtol=1e-5)
    mean, std = joined.statistics(jnp.array([4, 0]))
    np.testing.assert_array_equal(mean[:, 0, 0], joined.mean[::-1])
    np.testing.assert_array_equal(std[:, 0, 0], joined.std[::-1])


def test_gray_images_keep_their_statistics():
    found = data.join(arrays("a"), gray := arrays("b", shape=(4, 5, 1)))
    np.testing.assert_array_equal(found.mean[1], np.repeat(gray.mean, 3))


def test_the_parts_are_data_sets_that_share_the_memory(joined):
    for number, part in enumerate(joined.parts):
        assert not part.parts
        assert part.test.labels.max() < part.num_classes
        for split in ("train", "test"):
            own, whole = getattr(part, split).images, getattr(joined, split).images
            assert np.shares_memory(own, whole)
            start = number * len(getattr(joined.parts[0], split))
            np.testing.assert_array_equal(own, whole[start : start + len(own)])
    assert [part.original_shape for part in joined.parts] == [(4, 5, 3), (6, 3, 1)]


def test_proportions_are_by_size_or_given(joined):
    assert joined.train.sizes == joined.train.shares == (6, 10)
    same = data.join(*joined.parts, proportions=(1, 1))
    assert same.train.shares == (8, 8)
    assert "b 10 training images, 50.0 % of every batch" in same.notes[0]
    order = np.asarray(same.train.order(KEY, 1, 4))
    np.testing.assert_array_equal(order, mixed_order(KEY, 1, (6, 10), (8, 8), 4))


def test_a_description_has_those_of_the_parts(joined, tmp_path):
    described = describe(joined, (4, 4, 3))
    (tmp_path / "dataset.json").write_text(to_json(described))
    found = read_description(tmp_path / "dataset.json")
    assert differences(described, found) == {}
    assert [part.name for part in found.parts] == ["a", "b"]
    assert found.heads == joined.heads
    for part, own in zip(found.parts, joined.parts, strict=True):
        assert part.image_shape == (4, 4, 3)
        assert part.original_shape == own.original_shape
        np.testing.assert_array_equal(part.mean, own.mean)
    same = describe(data.join(*joined.parts, proportions=(1, 1)))
    assert differences(found, same).keys() == {"shares"}
    other = describe(data.join(*joined.parts[::-1]))
    assert "mean of the training pixels" in differences(found, other)["mean"]
    of_one = json.loads(to_json(describe(arrays())))
    assert not {"parts", "original_shape", "shares"} & of_one.keys()


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ([], "two or more names, such as cifar10+digits, got 'a'"),
        ([arrays("a", seed=1)], "the data set a is named twice"),
        ([arrays("b", dtype=np.float32)], "pixels of uint8 (a) and float32 (b) do not fit"),
        ([arrays("b", shape=(4, 5, 4))], "images of 3 (a) and 4 (b) channels do not fit"),
        ([data.join(arrays("b"), arrays("c"))], "b+c consists of several data sets already"),
        ([dataclasses.replace(arrays("b"), evaluated="held_out")], "evaluation on test (a) and"),
    ],
)
def test_what_does_not_fit_together_is_refused(others, message):
    with pytest.raises(UserError) as error:
        data.join(arrays("a"), *others)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_floats_of_two_sizes_are_refused():
    one, other = (arrays(n, shape=s, dtype=np.float32) for n, s in (("a", (4, 5)), ("b", (5, 4))))
    with pytest.raises(UserError, match=r"float32 images of 4x5 \(a\) and 5x4 \(b\) do not fit"):
        data.join(one, other)
    assert data.join(one, dataclasses.replace(one, name="b")).dtype == np.float32


@pytest.mark.parametrize("proportions", [
        (1,), (1, 0), (1, -1), (1, 1, 1), (1, 1e-9), (1, float("nan")), (1, float("inf")),
    ],
)  # fmt: skip
def test_bad_proportions_are_refused(proportions):
    with pytest.raises(UserError, match=r"^proportions 1"):
        data.join(arrays("a"), arrays("b"), proportions=proportions)


@pytest.mark.parametrize("proportions", ["1,2", "12", 2, (1, None)])
def test_proportions_of_another_type_are_refused(proportions):
    with pytest.raises(UserError, match=r"^proportions=.* must be numbers, one for each data set"):
        several._weights(proportions)


def test_proportions_may_be_of_numpy():
    weights = np.array([1, 3], np.float32)
    assert data.join(arrays("a"), arrays("b"), proportions=weights).train.shares == (3, 9)


def test_a_list_of_data_sets_is_refused():
    check = several._check.__wrapped__  # unwrapped: annotations are not checked
    with pytest.raises(UserError, match=r"as in join\(a, b\), not a list"):
        check([[arrays("a"), arrays("b")]])


# Prepared data sets


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with two data sets, ``toy`` and ``gray``."""
    folder = tmp_path_factory.mktemp("tfds")
    toy_datasets.prepare_two(folder)
    return folder


def test_prepared_data_sets_are_read_by_name(prepared):
    found = data.load_several(["toy", "gray"], prepared, proportions=(1, 2))
    assert found.image_shape == (6, 6, 3)
    assert found.train.shares == (20, 40)
    assert found.class_names[2:4] == ("toy/owl", "gray/cat")
    assert (len(found.train), len(found.test)) == (60, 15)


def test_images_are_held_out_of_each_by_size(prepared):
    found = data.load_several(["toy", "gray"], prepared, holdout=9)
    assert found.evaluated == "held_out"
    assert [len(part.test) for part in found.parts] == [6, 3]
    assert found.train.sizes == (34, 17)
    for part in found.parts:
        assert np.bincount(part.test.labels).tolist() == [len(part.test) // 3] * 3
        kept = {image.tobytes() for image in part.train.images}
        assert not kept & {image.tobytes() for image in part.test.images}
        np.testing.assert_allclose(part.mean, part.train.images.mean((0, 1, 2)) / 255, rtol=1e-5)
    with pytest.raises(UserError, match="leaves no image of gray to evaluate on"):
        data.load_several(["toy", "gray"], prepared, holdout=1)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["toy", "grey"], "unknown data set 'grey'; the nearest known names are gray"),
        (["toy", "toy"], "the data set toy is named twice"),
        (["toy", ""], "two or more names, such as cifar10+digits, got 'toy+'"),
    ],
)
def test_names_that_are_unknown_empty_or_repeated_are_refused(prepared, names, message):
    with pytest.raises(UserError) as error:
        data.load_several(names, prepared)
    assert message in str(error.value)
