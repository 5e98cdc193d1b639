import numpy as np
import pytest

from multipath_jax.figures import explorer, style


def test_pixels_of_integers_are_shown_as_they_are():
    images = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    np.testing.assert_array_equal(style.pixels(images), images)


def test_floats_from_0_to_1_are_scaled_alike():
    images = np.linspace(0, 0.5, 24, dtype=np.float32).reshape(2, 2, 2, 3)
    np.testing.assert_array_equal(style.pixels(images), np.rint(255 * images))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_other_floats_are_stretched_image_by_image(scale):
    images = scale * np.arange(-12, 12, dtype=np.float32).reshape(2, 2, 2, 3)
    found = style.pixels(images)
    assert found.dtype == np.uint8
    for image in found:
        np.testing.assert_array_equal(image.ravel(), np.rint(255 * np.arange(12) / 11))


def test_an_image_of_one_value_is_black():
    assert not style.pixels(np.full((1, 2, 2, 1), 7.0, np.float32)).any()


def test_thumbnails_and_montages_take_floats():
    images = np.random.default_rng(0).normal(size=(3, 4, 4, 1)).astype(np.float32)
    whole = style.pixels(images)
    assert explorer.thumbnails(images) == explorer.thumbnails(whole)
    np.testing.assert_array_equal(style.montage(images, 2), style.montage(whole, 2))
