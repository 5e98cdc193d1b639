import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from multipath_jax.data import (
    alternately_mirrored,
    augment,
    cutout,
    mix,
    normalize,
    random_crop,
    random_erase,
    random_flip,
    random_shift,
)

KEY = jax.random.key(7)


def _images(shape=(64, 6, 7, 3)) -> jax.Array:
    # All values are different and nonzero, so a result shows where each pixel came from.
    return jnp.arange(1, 1 + np.prod(shape), dtype=jnp.float32).reshape(shape)


def _shifted(image, down: int, right: int) -> np.ndarray:
    """Shifts an image with a loop over its pixels."""
    h, w, _ = image.shape
    result = np.zeros_like(image)
    for y in range(h):
        for x in range(w):
            if 0 <= y - down < h and 0 <= x - right < w:
                result[y, x] = image[y - down, x - right]
    return result


def _offset(image, result, max_shift: int) -> tuple[int, int]:
    """Returns the only shift that turns `image` into `result`."""
    steps = range(-max_shift, max_shift + 1)
    found = [(d, r) for d in steps for r in steps if np.array_equal(_shifted(image, d, r), result)]
    assert len(found) == 1
    return found[0]


def test_normalize():
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 3), np.uint8)
    mean, std = np.float32([0.1, 0.5, 0.9]), np.float32([0.2, 0.3, 0.4])
    result = jax.jit(normalize)(images, mean, std)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, (images / 255.0 - mean) / std, rtol=1e-5, atol=1e-6)


def test_shift_moves_each_image_by_a_whole_number_of_pixels():
    images = np.asarray(_images())
    results = np.asarray(jax.jit(random_shift, static_argnums=2)(KEY, images, 2))
    offsets = [_offset(image, result, 2) for image, result in zip(images, results, strict=True)]
    assert len(set(offsets)) > 15  # 64 draws miss more than 9 of the 25 with p < 1e-6


def test_shift_is_uniform_both_ways():
    images = np.zeros((20_000, 5, 5, 1), np.float32)
    images[:, 2, 2] = 1
    # A shift by (d, r) moves the point to (2 + d, 2 + r), so the mean image has all frequencies.
    frequencies = np.asarray(random_shift(KEY, jnp.asarray(images), 2)).mean(0)[..., 0]
    deviation = np.sqrt(1 / 25 * 24 / 25 / 20_000)
    np.testing.assert_allclose(frequencies, 1 / 25, atol=4 * deviation)


def test_crops_are_cut_out_at_places_of_their_own():
    images = np.asarray(_images((64, 7, 6, 3)))
    results = np.asarray(jax.jit(random_crop, static_argnums=(2, 3))(KEY, images, 5, 3))
    assert results.shape == (64, 5, 3, 3)
    places = set()
    for image, result in zip(images, results, strict=True):
        found = [
            (y, x)
            for y in range(3)
            for x in range(4)
            if np.array_equal(image[y : y + 5, x : x + 3], result)
        ]
        assert len(found) == 1
        places.update(found)
    assert len(places) >= 9  # 64 draws miss more than 3 of the 12 with p < 1e-6


def test_a_crop_of_the_whole_image_is_the_image():
    images = _images()
    np.testing.assert_array_equal(random_crop(KEY, images, *images.shape[1:3]), images)


def test_flip_mirrors_left_to_right_or_leaves_alone():
    images = np.asarray(_images())
    results = np.asarray(jax.jit(random_flip)(KEY, images))
    for image, result in zip(images, results, strict=True):
        assert np.array_equal(result, image) or np.array_equal(result, image[:, ::-1])


def test_half_are_flipped():
    images = jnp.tile(jnp.float32([0, 1]).reshape(1, 1, 2, 1), (20_000, 1, 1, 1))
    flipped = np.asarray(random_flip(KEY, images))[:, 0, 0, 0]
    assert abs(flipped.mean() - 0.5) < 4 * 0.5 / np.sqrt(20_000)


@pytest.mark.parametrize(("max_shift", "flip"), [(1, False), (0, True), (1, True)])
def test_same_key_same_result_other_key_other_result(max_shift, flip):
    def run(key):
        return np.asarray(augment(key, _images(), max_shift=max_shift, flip=flip))

    np.testing.assert_array_equal(run(KEY), run(KEY))
    assert not np.array_equal(run(KEY), run(jax.random.key(8)))


def test_augment_does_nothing_unasked():
    images = _images()
    assert augment(KEY, images, max_shift=0, flip=False) is images


def test_augment_does_only_what_is_asked():
    image, shifted = (
        np.asarray(_images()),
        np.asarray(augment(KEY, _images(), max_shift=1, flip=False)),
    )
    for before, after in zip(image, shifted, strict=True):
        _offset(before, after, 1)
    flipped = np.asarray(augment(KEY, _images(), max_shift=0, flip=True))
    np.testing.assert_array_equal(np.sort(flipped, axis=2), image)


def test_shift_and_flip_are_drawn_apart():
    images = np.zeros((20_000, 1, 5, 1), np.float32)
    images[:, :, 2:] = [[1], [2], [3]]
    results = np.asarray(augment(KEY, jnp.asarray(images), max_shift=1, flip=True))
    kinds, counts = np.unique(results.reshape(-1, 5), axis=0, return_counts=True)
    # The images have one row, so only the third that is not shifted vertically keeps its pixels.
    # These have 3 horizontal shifts, mirrored or not, with equal probability.
    kept = counts[kinds.any(1)]
    assert len(kept) == 6
    np.testing.assert_allclose(kept / 20_000, 1 / 18, atol=4 * np.sqrt(1 / 18 / 20_000))


def test_a_batch_split_over_devices_is_augmented_where_it_is():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    images = _images()
    step = jax.jit(lambda key, x: augment(key, x, max_shift=2, flip=True), out_shardings=sharding)
    compiled = step.lower(KEY, jax.device_put(images, sharding)).compile()
    result = compiled(KEY, jax.device_put(images, sharding))
    np.testing.assert_array_equal(result, augment(KEY, images, max_shift=2, flip=True))
    # Offsets may be communicated between devices, but no all-gather may copy the whole batch.
    assert not [line for line in compiled.as_text().splitlines() if "all-gather" in line]


def test_reflected_images_come_in_at_the_edges():
    """A shifted image is a window of the image as padded by NumPy."""
    images = np.asarray(_images())
    results = np.asarray(jax.jit(random_shift, static_argnums=(2, 3))(KEY, images, 3, "reflect"))
    offsets = set()
    for image, result in zip(images, results, strict=True):
        padded = np.pad(image, ((3, 3), (3, 3), (0, 0)), mode="reflect")
        windows = [(y, x) for y in range(7) for x in range(7)]
        found = [(y, x) for y, x in windows if np.array_equal(padded[y : y + 6, x : x + 7], result)]
        assert len(found) == 1
        offsets.update(found)
    assert len(offsets) > 25  # 64 draws miss more than 23 of the 49 with p < 1e-5


def test_an_image_is_mirrored_in_every_other_epoch():
    images = np.random.default_rng(0).integers(0, 256, (2000, 4, 5, 3), np.uint8)
    first, second, third = (
        np.asarray(jax.jit(alternately_mirrored)(KEY, images, jnp.int32(epoch)))
        for epoch in range(3)
    )
    np.testing.assert_array_equal(second, ~first)
    np.testing.assert_array_equal(third, first)
    assert abs(first.mean() - 0.5) < 4 * 0.5 / np.sqrt(2000)
    # The selection depends neither on the position in the batch nor on the other images; the key
    # of another run selects another half.
    order = np.random.default_rng(1).permutation(2000)[:100]
    moved = alternately_mirrored(KEY, jnp.asarray(images[order]), jnp.int32(0))
    np.testing.assert_array_equal(moved, first[order])
    other = alternately_mirrored(jax.random.key(8), jnp.asarray(images), jnp.int32(0))
    assert abs((np.asarray(other) == first).mean() - 0.5) < 4 * 0.5 / np.sqrt(2000)


def test_images_that_differ_by_one_pixel_have_bits_of_their_own():
    images = np.zeros((256, 4, 5, 3), np.uint8)
    images[:, 2, 3, 1] = np.arange(256)
    mirrored = np.asarray(alternately_mirrored(KEY, jnp.asarray(images), jnp.int32(0)))
    assert 0.25 < mirrored.mean() < 0.75


def test_images_are_mirrored_where_augment_is_told():
    images, mirrored = _images(), jnp.arange(64) % 3 == 0
    found = augment(KEY, images, max_shift=0, flip=True, mirrored=mirrored)
    for image, result, flipped in zip(images, found, mirrored, strict=True):
        np.testing.assert_array_equal(result, image[:, ::-1] if flipped else image)


@pytest.mark.parametrize("side", [1, 2, 3, 20])
def test_cutout_blanks_a_square_about_any_pixel(side):
    images = np.ones((5000, 6, 7, 2), np.float32)
    blank = np.asarray(jax.jit(cutout, static_argnums=2)(KEY, images, side)) == 0
    expected = {}
    for y in range(6):
        for x in range(7):
            mask = np.zeros((6, 7), bool)
            top, left = y - side // 2, x - side // 2
            mask[max(top, 0) : top + side, max(left, 0) : left + side] = True
            expected[mask.tobytes()] = expected.get(mask.tobytes(), 0) + 1
    np.testing.assert_array_equal(blank[..., 0], blank[..., 1])
    masks, counts = np.unique(blank[..., 0].reshape(5000, -1), axis=0, return_counts=True)
    assert {mask.tobytes() for mask in masks} == expected.keys()
    for mask, count in zip(masks, counts, strict=True):
        share = expected[mask.tobytes()] / 42
        assert abs(count / 5000 - share) <= 4.5 * np.sqrt(share * (1 - share) / 5000)


def _rectangle(blank) -> tuple[slice, slice]:
    """Returns the bounds of the blank pixels, which must form a rectangle."""
    rows, columns = np.flatnonzero(blank.any(1)), np.flatnonzero(blank.any(0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    assert blank[box].all()
    assert blank.sum() == blank[box].size
    return box


def test_erasing_blanks_a_rectangle_within_the_image():
    count, shape = 4000, (30, 40)
    blank = np.asarray(random_erase(KEY, jnp.ones((count, *shape, 2)), 0.25)) == 0
    assert (blank[..., 0] == blank[..., 1]).all()
    erased = blank[blank.any((1, 2, 3))][..., 0]
    assert abs(len(erased) / count - 0.25) < 4 * np.sqrt(0.25 * 0.75 / count)
    boxes = [_rectangle(one) for one in erased]
    heights = np.array([rows.stop - rows.start for rows, _ in boxes])
    widths = np.array([columns.stop - columns.start for _, columns in boxes])
    assert (heights < 30).all()
    assert (widths < 40).all()
    areas = heights * widths / 1200
    # Tolerances: sides of about 15 pixels are rounded to whole pixels.
    assert areas.min() > 0.015
    assert areas.max() < 0.36
    logs = np.log(heights / widths)
    assert logs.min() > np.log(0.3) - 0.15
    assert logs.max() < np.log(3.3) + 0.15
    # The area is uniform, except that some tall rectangles do not fit: the mean is near the middle.
    assert abs(areas.mean() - 0.175) < 0.02
    tops = np.array([rows.start / (30 - h) for (rows, _), h in zip(boxes, heights, strict=True)])
    assert abs(tops.mean() - 0.5) < 4 * 0.4 / np.sqrt(len(tops))


def test_mixup_is_a_weighted_mean_of_neighbours_and_of_their_labels():
    images, labels = np.asarray(_images()), jnp.arange(64)
    mixed, found = jax.jit(mix, static_argnums=(3, 4))(KEY, images, labels, 0.4, 0.0)
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_array_equal(found.others, np.roll(labels, 1))
    share = np.asarray(found.share)[:, None, None, None]
    expected = share * images + (1 - share) * np.roll(images, 1, axis=0)
    np.testing.assert_allclose(mixed, expected, rtol=1e-5)  # float32 rounding
    assert len(np.unique(share)) == 64


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_weights_of_mixup_are_of_the_beta_distribution(alpha):
    count = 20_000
    _, found = mix(KEY, jnp.zeros((count, 1, 1, 1)), jnp.zeros(count, jnp.int32), alpha, 0.0)
    share, variance = np.asarray(found.share), 1 / (4 * (2 * alpha + 1))
    assert abs(share.mean() - 0.5) < 4 * np.sqrt(variance / count)
    assert share.var() == pytest.approx(variance, rel=0.05)  # at least 4 standard deviations


def test_cutmix_puts_a_box_of_the_neighbour_into_an_image():
    images = np.asarray(_images((2000, 8, 10, 2)))
    mixed, found = jax.jit(mix, static_argnums=(3, 4))(KEY, images, jnp.arange(2000), 0.0, 1.0)
    mixed, other = np.asarray(mixed), np.roll(images, 1, axis=0)
    foreign = (mixed == other).all(-1)
    np.testing.assert_array_equal(mixed, np.where(foreign[..., None], other, images))
    np.testing.assert_allclose(found.share, 1 - foreign.mean((1, 2)), atol=1e-6)  # rounding
    for box in foreign[foreign.any((1, 2))]:
        _rectangle(box)
    # The sides of boxes are rounded down and clipped at the edges: less than half is foreign.
    assert 0.2 < foreign.mean() < 0.45
    assert foreign[:, 0, 0].any()
    assert foreign[:, -1, -1].any()


def test_with_both_each_image_takes_one():
    images = np.asarray(_images((2000, 8, 10, 1)))
    mixed, _ = mix(KEY, jnp.asarray(images), jnp.arange(2000), 0.4, 1.0)
    blended = (np.asarray(mixed) != images) & (np.asarray(mixed) != np.roll(images, 1, axis=0))
    blended = blended.any((1, 2, 3))
    # Blending with a weight of 0 or 1, up to float32 rounding, has no visible effect.
    assert 0.4 < blended.mean() < 0.6
