"""Every operation against Pillow, image by image, for a range of strengths."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from PIL import Image, ImageEnhance, ImageOps

from multipath_jax.data.trivial_augment import LEVELS, OPERATIONS, transform, trivial_augment

transform, trivial_augment = jax.jit(transform), jax.jit(trivial_augment)

SIDE = 32
CASES = [(level, sign) for level in (0, 1, 7, 15, 29, 30) for sign in (1, -1)]


def photographs(count: int, channels: int = 3) -> np.ndarray:
    """Smooth noise of limited contrast, so that autocontrast, equalize and sharpness change it."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(40, 200, (count, 5, 7, channels), np.uint8)
    enlarge = [Image.fromarray(image.squeeze()).resize((SIDE, SIDE - 4)) for image in coarse]
    return np.stack([np.asarray(image).reshape(SIDE - 4, SIDE, channels) for image in enlarge])


def affine(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix)


def by_pillow(name: str, image: Image.Image, level: int, sign: int) -> Image.Image:
    """Calls Pillow as TrivialAugmentWide of torchvision does, which follows AutoAugment."""
    part = level / (LEVELS - 1)
    shear, shift = sign * 0.99 * part, sign * math.trunc(32 * part)
    enhance = {
        "brightness": ImageEnhance.Brightness,
        "contrast": ImageEnhance.Contrast,
        "color": ImageEnhance.Color,
        "sharpness": ImageEnhance.Sharpness,
    }
    if name in enhance:
        return enhance[name](image).enhance(1 + sign * 0.99 * part)
    return {
        "identity": lambda: image,
        "posterize": lambda: ImageOps.posterize(image, 8 - round(level / 5)),
        "solarize": lambda: ImageOps.solarize(image, 255 - level * 8.5),
        "autocontrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
        "shear_x": lambda: affine(image, 1, shear, 0, 0, 1, 0),
        "shear_y": lambda: affine(image, 1, 0, 0, shear, 1, 0),
        "translate_x": lambda: affine(image, 1, 0, shift, 0, 1, 0),
        "translate_y": lambda: affine(image, 1, 0, 0, 0, 1, shift),
        "rotate": lambda: image.rotate(sign * 135 * part),
    }[name]()


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_pillows(name):
    images = photographs(len(CASES))
    levels, signs = (np.array(column) for column in zip(*CASES, strict=True))
    operation = np.full(len(CASES), OPERATIONS.index(name))
    found = transform(images, operation, levels, signs.astype(np.float32))
    assert found.dtype == jnp.uint8
    for image, ours, case in zip(images, np.asarray(found), CASES, strict=True):
        theirs = np.asarray(by_pillow(name, Image.fromarray(image), *case))
        difference = np.abs(ours.astype(int) - theirs)
        if name.startswith(("shear", "rotate")):
            # Pillow computes coordinates in fixed point, so it may select the other pixel where a
            # shear or a rotation hits the border between two pixels.
            assert (difference > 0).any(-1).mean() < 0.03, case
        else:
            # One grey level, from a rounded mean, or from a product close to an integer in float32.
            assert difference.max() <= 1, case
            assert (difference > 0).mean() < 0.05, case
        changed = name not in ("identity", "autocontrast", "equalize")
        if case[0] == 30 and changed:
            assert (ours != image).any()


def test_one_image_s_operation_leaves_the_others_alone():
    images = photographs(len(OPERATIONS))
    operation, level = np.arange(len(OPERATIONS)), np.full(len(OPERATIONS), 20)
    together = np.asarray(transform(images, operation, level, np.ones(len(operation), np.float32)))
    for number, image in enumerate(images):
        alone = transform(image[None], operation[number, None], level[:1], np.ones(1, np.float32))
        np.testing.assert_array_equal(together[number], alone[0])
    np.testing.assert_array_equal(together[0], images[0])
    assert all((a != b).any() for a, b in zip(together[1:], images[1:], strict=True))


def test_grey_images_are_augmented_too():
    images = photographs(len(OPERATIONS), channels=1)
    operation, level = np.arange(len(OPERATIONS)), np.full(len(OPERATIONS), 20)
    found = np.asarray(transform(images, operation, level, np.ones(len(operation), np.float32)))
    assert found.shape == images.shape
    grey = OPERATIONS.index("color")
    np.testing.assert_array_equal(found[grey], images[grey])
    equalize = OPERATIONS.index("equalize")
    theirs = ImageOps.equalize(Image.fromarray(images[equalize].squeeze()))
    np.testing.assert_array_equal(found[equalize].squeeze(), theirs)


def test_all_operations_strengths_and_directions_are_as_likely():
    """The mean image of many draws equals the mean over all cases."""
    every = np.array([(o, v, s) for o in range(14) for v in range(LEVELS) for s in (1, -1)])
    image = photographs(1)[:, ::4, ::4]  # 7x8 pixels are enough
    operation, level, sign = every.T
    cases = transform(image.repeat(len(every), 0), operation, level, sign.astype(np.float32))
    cases = np.asarray(cases, np.float64)
    drawn = np.asarray(trivial_augment(jax.random.key(0), image.repeat(20_000, 0)), np.float64)
    tolerance = 4.5 * cases.std(0) / np.sqrt(len(drawn))  # 168 means: 1 of 900 seeds would fail
    assert (np.abs(drawn.mean(0) - cases.mean(0)) < tolerance).all()


def test_a_batch_split_over_devices_is_augmented_where_it_is():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    images, key = photographs(8), jax.random.key(1)
    placed = jax.device_put(images, sharding)
    compiled = jax.jit(trivial_augment, out_shardings=sharding).lower(key, placed).compile()
    np.testing.assert_array_equal(compiled(key, placed), trivial_augment(key, images))
    # Operations and strengths may be communicated between devices, but no pixels.
    gathers = [line for line in compiled.as_text().splitlines() if " all-gather(" in line]
    assert not [line for line in gathers if "u8[8," in line]
