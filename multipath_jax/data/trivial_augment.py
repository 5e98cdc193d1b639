"""TrivialAugment (Müller and Hutter, 2021): one operation of random strength for each image.

The operations are Pillow's, with the wide range of strengths, as in torchvision's
`TrivialAugmentWide`. A batch goes through three passes, one for each kind of operation: lookup
tables of pixel values, blending with a degraded image, affine transformations. Each pass leaves the
images with other operations unchanged.

Shapes: `b` batch, `h w` height and width, `c` channels.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt8

OPERATIONS = (
    "identity",
    "posterize",
    "solarize",
    "autocontrast",
    "equalize",
    "brightness",
    "contrast",
    "color",
    "sharpness",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
)
LEVELS = 31  # number of strengths, from 0 to 30
# Largest strengths, in either direction: slope, pixels, degrees, change of the blending factor.
SHEAR, TRANSLATION, ROTATION, ENHANCEMENT = 0.99, 32, 135, 0.99
_LUMA = (19595, 38470, 7471)  # weights of red, green and blue in a grey value, over 65536

Chosen = Callable[[str], Bool[Array, " b"]]


def trivial_augment(key: PRNGKeyArray, images: UInt8[Array, "b h w c"]) -> UInt8[Array, "b h w c"]:
    """Applies one operation to each image, with uniformly random strength and direction.

    Müller and Hutter, "TrivialAugment" (2021), with the wide range of strengths.

    Args:
      key: a random key.
      images: uint8 `[b h w c]`.

    Returns:
      uint8 `[b h w c]`.
    """
    operation_key, level_key, sign_key = jax.random.split(key, 3)
    count = len(images)
    operation = jax.random.randint(operation_key, (count,), 0, len(OPERATIONS))
    level = jax.random.randint(level_key, (count,), 0, LEVELS)
    sign = jax.random.rademacher(sign_key, (count,), jnp.float32)
    return transform(images, operation, level, sign)


def transform(
    images: UInt8[Array, "b h w c"],
    operation: Int[Array, " b"],
    level: Int[Array, " b"],
    sign: Float[Array, " b"],
) -> UInt8[Array, "b h w c"]:
    """Applies a given operation to each image.

    Args:
      images: uint8 `[b h w c]`.
      operation: index in `OPERATIONS`, `[b]`.
      level: strength, from 0 to `LEVELS - 1`, `[b]`.
      sign: direction, 1 or -1, `[b]`.

    Returns:
      uint8 `[b h w c]`.
    """

    def chosen(name: str) -> Bool[Array, " b"]:
        return operation == OPERATIONS.index(name)

    strength = level / (LEVELS - 1)
    pixels = _by_table(images, chosen, strength)
    pixels = _blended(pixels, chosen, 1 + ENHANCEMENT * sign * strength)
    return _moved(pixels, chosen, sign * strength)


def _by_table(
    images: UInt8[Array, "b h w c"], chosen: Chosen, strength: Float[Array, " b"]
) -> UInt8[Array, "b h w c"]:
    """Applies the operations that map each pixel value of a channel by a lookup table."""
    count, channels = images.shape[0], images.shape[-1]
    flat = images.reshape(count, -1, channels).astype(jnp.int32)
    values = jnp.arange(256)[None, :, None]  # [1 256 1], beside tables [b 256 c]
    strength = strength[:, None, None]
    dropped = jnp.round(6 * strength).astype(jnp.int32)  # the lowest bits
    table = jnp.broadcast_to(values, (count, 256, channels))
    for name, other in (
        ("posterize", values >> dropped << dropped),
        ("solarize", jnp.where(values < 255 * (1 - strength), values, 255 - values)),
        ("autocontrast", _stretched(flat, values)),
        ("equalize", _equalized(flat, values)),
    ):
        table = jnp.where(chosen(name)[:, None, None], other, table)
    found = jnp.take_along_axis(table, flat, axis=1, mode="promise_in_bounds")
    return found.astype(jnp.uint8).reshape(images.shape)


def _stretched(flat: Int[Array, "b p c"], values: Int[Array, "1 256 1"]) -> Int[Array, "b 256 c"]:
    """The table that stretches each channel to the range 0 to 255, unless it is constant."""
    low, high = flat.min(1, keepdims=True), flat.max(1, keepdims=True)
    # In integers, so that rounding does not depend on the backend.
    stretched = (values - low) * 255 // jnp.maximum(high - low, 1)
    return jnp.where(high > low, jnp.clip(stretched, 0, 255), values)


def _equalized(flat: Int[Array, "b p c"], values: Int[Array, "1 256 1"]) -> Int[Array, "b 256 c"]:
    """The table that equalizes the histogram of each channel, unless it has too few values."""

    def frequencies(channel: Int[Array, " p"]) -> Int[Array, "256"]:
        return jnp.zeros(256, jnp.int32).at[channel].add(1, mode="promise_in_bounds")

    frequent = jax.vmap(jax.vmap(frequencies, in_axes=1, out_axes=1))(flat)
    highest = jnp.take_along_axis(frequent, flat.max(1, keepdims=True), axis=1)
    step = (flat.shape[1] - highest) // 255
    below = jnp.cumsum(frequent, axis=1) - frequent
    equalized = (below + step // 2) // jnp.maximum(step, 1)
    return jnp.where(step > 0, jnp.clip(equalized, 0, 255), values)


def _blended(
    images: UInt8[Array, "b h w c"], chosen: Chosen, factor: Float[Array, " b"]
) -> UInt8[Array, "b h w c"]:
    """Blends images with degraded ones: black, constant, grey or blurred.

    A factor below 1 interpolates towards the degraded image, one above 1 extrapolates.
    """
    pixels = images.astype(jnp.float32)
    grey = _grey(images)
    mean = jnp.floor(grey.mean((1, 2, 3), keepdims=True) + 0.5)
    degraded, enhanced = jnp.zeros_like(pixels), chosen("brightness")
    for name, other in (("contrast", mean), ("color", grey), ("sharpness", _blurred(pixels))):
        degraded = jnp.where(chosen(name)[:, None, None, None], other, degraded)
        enhanced |= chosen(name)
    blended = degraded + factor[:, None, None, None] * (pixels - degraded)
    blended = jnp.clip(blended, 0, 255).astype(jnp.uint8)  # rounds towards zero, as Pillow does
    return jnp.where(enhanced[:, None, None, None], blended, images)


def _grey(images: UInt8[Array, "b h w c"]) -> Float[Array, "b h w 1"]:
    """The luma of RGB images; the mean of the channels if there are not three."""
    if images.shape[-1] != len(_LUMA):
        return images.astype(jnp.float32).mean(-1, keepdims=True)
    parts = images.astype(jnp.int32) * jnp.array(_LUMA)
    return (parts.sum(-1, keepdims=True) + 2**15 >> 16).astype(jnp.float32)


def _blurred(pixels: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """The weighted mean of 3x3 pixels, the center with weight 5; edge pixels are unchanged."""
    height, width = pixels.shape[1:3]
    inner = pixels[:, 1:-1, 1:-1]
    square = [pixels[:, y : y + height - 2, x : x + width - 2] for y in range(3) for x in range(3)]
    mean = jnp.floor((sum(square) + 4 * inner) / 13 + 0.5)
    return pixels.at[:, 1:-1, 1:-1].set(mean)


def _moved(
    images: UInt8[Array, "b h w c"], chosen: Chosen, strength: Float[Array, " b"]
) -> UInt8[Array, "b h w c"]:
    """Shears, translates or rotates, with nearest-neighbor sampling and black fill."""
    count, height, width, channels = images.shape

    def of(name: str, value: Float[Array, " b"]) -> Float[Array, "b 1 1"]:
        return jnp.where(chosen(name), value, 0)[:, None, None]

    angle = of("rotate", jnp.deg2rad(ROTATION * strength))
    shear, shift = SHEAR * strength, jnp.trunc(TRANSLATION * strength)  # whole pixels
    # From the center of each output pixel to its source.
    y, x = jnp.arange(height)[:, None] + 0.5, jnp.arange(width) + 0.5
    down, right = y - height / 2, x - width / 2
    turned_x = jnp.cos(angle) * right - jnp.sin(angle) * down + width / 2
    turned_y = jnp.sin(angle) * right + jnp.cos(angle) * down + height / 2
    from_x = turned_x + of("shear_x", shear) * y + of("translate_x", shift)
    from_y = turned_y + of("shear_y", shear) * x + of("translate_y", shift)
    column, row = jnp.floor(from_x).astype(jnp.int32), jnp.floor(from_y).astype(jnp.int32)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    place = jnp.where(inside, row * width + column, 0).reshape(count, -1, 1)
    flat = images.reshape(count, -1, channels)
    found = jnp.take_along_axis(flat, place, axis=1, mode="promise_in_bounds")
    return jnp.where(inside[..., None], found.reshape(images.shape), 0)
