import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from multipath_jax.data import augment, normalize, random_crop, random_flip, random_shift

KEY = jax.random.key(7)


def _images(shape=(64, 6, 7, 3)) -> jax.Array:
    # Every value is its own and none is zero, so a result shows where each pixel came from.
    return jnp.arange(1, 1 + np.prod(shape), dtype=jnp.float32).reshape(shape)


def _shifted(image, down: int, right: int) -> np.ndarray:
    """One image moved, by a loop over its pixels."""
    h, w, _ = image.shape
    result = np.zeros_like(image)
    for y in range(h):
        for x in range(w):
            if 0 <= y - down < h and 0 <= x - right < w:
                result[y, x] = image[y - down, x - right]
    return result


def _offset(image, result, max_shift: int) -> tuple[int, int]:
    """The one shift that makes `result` of `image`."""
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
    assert len(set(offsets)) > 15  # 64 draws of the 25 leave out more than 9 with odds of 1e-6


def test_shift_is_uniform_both_ways():
    images = np.zeros((20_000, 5, 5, 1), np.float32)
    images[:, 2, 2] = 1
    # A point moved by (d, r) ends at (2 + d, 2 + r): the mean image holds all frequencies.
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
    assert len(places) >= 9  # 64 draws of the 12 leave out more than 3 with odds of 1e-6


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
    # Downwards nothing, up or down all: a third is left, and of that each way right and mirrored.
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
    # The offsets may travel; no collective moves a whole batch.
    assert not [line for line in compiled.as_text().splitlines() if "all-gather" in line]
