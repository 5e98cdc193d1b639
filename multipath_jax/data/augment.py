"""Augmentation on the device: pure functions over a batch, made to run inside the compiled step.

Shapes: `b` batch, `h w` height and width, `c` channels.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Num, PRNGKeyArray


def normalize(
    images: Num[Array, "b h w c"],
    mean: Float[Array | np.ndarray, " c"],
    std: Float[Array | np.ndarray, " c"],
) -> Float[Array, "b h w c"]:
    """Pixels less the mean, over the deviation: `[b h w c]` to float32.

    uint8 pixels are brought to [0, 1] first, float32 ones are taken as they are.
    """
    if images.dtype == jnp.uint8:
        images = images.astype(jnp.float32) / 255
    return (images - mean) / std


def random_shift(
    key: PRNGKeyArray, images: Float[Array, "b h w c"], max_shift: int, mode: str = "zeros"
) -> Float[Array, "b h w c"]:
    """Moves each image by its own whole number of pixels, at most `max_shift` either way.

    Both offsets are uniform. `mode` says what the vacated pixels are: "zeros", the mean colour of
    normalized images, or "reflect", the image mirrored at its outermost pixels.
    """
    margin = (max_shift, max_shift)
    how = "constant" if mode == "zeros" else mode
    padded = jnp.pad(images, ((0, 0), margin, margin, (0, 0)), mode=how)
    return random_crop(key, padded, *images.shape[1:3])


def random_crop(
    key: PRNGKeyArray, images: Num[Array, "b h w c"], height: int, width: int
) -> Num[Array, "b height width c"]:
    """Cuts `height` x `width` pixels out of each image, at a place of its own, all as likely."""
    # A slice of each image under vmap: for random_shift at 128x32x32x3 on a CPU faster than
    # indexing rows and columns (1.3 times), a loop over images (2) and choosing among static
    # shifts (14).
    places = jnp.array([images.shape[1] - height + 1, images.shape[2] - width + 1])
    offsets = jax.random.randint(key, (len(images), 2), 0, places)

    def crop(image, offset):
        return lax.dynamic_slice(image, (*offset, 0), (height, width, image.shape[-1]))

    return jax.vmap(crop)(images, offsets)


def random_flip(key: PRNGKeyArray, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Mirrors each image left to right with probability one half."""
    flipped = jax.random.bernoulli(key, shape=(len(images), 1, 1, 1))
    return jnp.where(flipped, images[:, :, ::-1], images)


def alternately_mirrored(
    key: PRNGKeyArray, images: Num[Array, "b h w c"], epoch: Int[Array, ""]
) -> Bool[Array, " b"]:
    """Which images to mirror in this epoch: half of them in the even epochs, the others in the odd.

    Which half an image is in is decided by a hash of its pixels, strongly universal under a random
    `key` (any two images that differ have bits of their own): so it depends neither on where the
    image came from nor on its place in the batch. Give the images as they are stored, and the same
    key in all epochs.
    """
    weights_key, offset_key = jax.random.split(key)
    weights = jax.random.bits(weights_key, images.shape[1:], jnp.uint32)
    whole = images.dtype == jnp.uint8
    bits = images.astype(jnp.uint32) if whole else lax.bitcast_convert_type(images, jnp.uint32)
    sums = jnp.sum(bits * weights, axis=(1, 2, 3), dtype=jnp.uint32)
    half = (sums + jax.random.bits(offset_key, (), jnp.uint32)) >> 31
    return (half + epoch.astype(jnp.uint32)) % 2 == 1


def cutout(
    key: PRNGKeyArray, images: Float[Array, "b h w c"], side: int
) -> Float[Array, "b h w c"]:
    """Zeros in a square of each image, the rest of which is as it was (DeVries and Taylor, 2017).

    The centre is any pixel, all as likely; what of the square lies outside the image is lost.
    """
    count, height, width, _ = images.shape
    centres = jax.random.randint(key, (count, 2), 0, jnp.array([height, width]))
    first = centres - side // 2
    return jnp.where(boxes(first, first + side, height, width), 0, images)


def random_erase(
    key: PRNGKeyArray, images: Float[Array, "b h w c"], probability: float
) -> Float[Array, "b h w c"]:
    """Zeros in a rectangle within each image, with this probability (Zhong et al., 2020).

    Its area is from 2 % to 33 % of the image's, its height from 0.3 to 3.3 times its width. As in
    torchvision, ten are drawn, and the first that fits is taken.
    """
    count, height, width, _ = images.shape
    keys = jax.random.split(key, 4)
    area = height * width * jax.random.uniform(keys[0], (count, 10), minval=0.02, maxval=0.33)
    logs = jnp.log(jnp.array([0.3, 3.3]))
    ratio = jnp.exp(jax.random.uniform(keys[1], (count, 10), minval=logs[0], maxval=logs[1]))
    sizes = jnp.round(jnp.sqrt(jnp.stack([area * ratio, area / ratio], -1))).astype(jnp.int32)
    whole = jnp.array([height, width])
    fits = (sizes < whole).all(-1)
    size = jnp.take_along_axis(sizes, fits.argmax(1)[:, None, None], 1)[:, 0]
    first = jax.random.randint(keys[2], (count, 2), 0, jnp.maximum(whole - size + 1, 1))
    erased = jax.random.bernoulli(keys[3], probability, (count,)) & fits.any(1)
    inside = boxes(first, first + size, height, width)
    return jnp.where(inside & erased[:, None, None, None], 0, images)


def boxes(
    first: Int[Array, "b 2"], stop: Int[Array, "b 2"], height: int, width: int
) -> Bool[Array, "b h w 1"]:
    """Which pixels lie in the box of each image, from (row, column) `first` to before `stop`."""
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)

    def inside(places, axis):
        shape = (-1, 1, 1)
        return (places >= first[:, axis].reshape(shape)) & (places < stop[:, axis].reshape(shape))

    return (inside(rows, 0) & inside(columns, 1))[..., None]


def augment(
    key: PRNGKeyArray,
    images: Float[Array, "b h w c"],
    *,
    max_shift: int,
    flip: bool,
    shift_mode: str = "zeros",
    mirrored: Bool[Array, " b"] | None = None,
    cutout_side: int = 0,
    erase: float = 0.0,
) -> Float[Array, "b h w c"]:
    """Shift, flip, cutout and random erasing, one after the other; 0 and False leave one out.

    `mirrored` says which images are flipped, in place of half of them at random.
    """
    shift_key, flip_key = jax.random.split(key)
    if max_shift:
        images = random_shift(shift_key, images, max_shift, shift_mode)
    if flip and mirrored is None:
        images = random_flip(flip_key, images)
    elif flip:
        images = jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
    if cutout_side:
        images = cutout(jax.random.fold_in(key, 2), images, cutout_side)
    if erase:
        images = random_erase(jax.random.fold_in(key, 3), images, erase)
    return images


class MixedLabels(NamedTuple):
    """The labels of mixed images: of `labels` the part `share`, of `others` the rest."""

    labels: Int[Array, " b"]
    others: Int[Array, " b"]
    share: Float[Array, " b"]


def mix(
    key: PRNGKeyArray,
    images: Float[Array, "b h w c"],
    labels: Int[Array, " b"],
    mixup: float,
    cutmix: float,
) -> tuple[Float[Array, "b h w c"], MixedLabels]:
    """Mixes each image with the one before it in the batch, whose order is random already.

    `mixup` (Zhang et al., 2018): the weighted mean of both, of weights l and 1 - l, where l is
    drawn from Beta(mixup, mixup). `cutmix` (Yun et al., 2019): a box of the other image in its own
    place, of the part 1 - l of the area, l from Beta(cutmix, cutmix); the centre is any pixel, and
    what of the box lies outside the image is lost. Where neither is 0 each image takes one of them,
    either as likely. A label's share is that of its image in the pixels.
    """
    count, height, width, _ = images.shape
    keys = jax.random.split(key, 4)
    kept = jnp.ones((count, 1, 1, 1))
    if mixup:
        kept = jax.random.beta(keys[0], mixup, mixup, kept.shape)
    if cutmix:
        area = 1 - jax.random.beta(keys[1], cutmix, cutmix, (count, 1))
        sides = jnp.array([height, width])
        cut = (jnp.sqrt(area) * sides).astype(jnp.int32)
        first = jax.random.randint(keys[2], (count, 2), 0, sides) - cut // 2
        outside = 1.0 - boxes(first, first + cut, height, width)
        boxed = jax.random.bernoulli(keys[3], 0.5 if mixup else 1.0, (count, 1, 1, 1))
        kept = jnp.where(boxed, outside, kept)
    mixed = kept * images + (1 - kept) * jnp.roll(images, 1, axis=0)
    return mixed, MixedLabels(labels, jnp.roll(labels, 1), kept.mean((1, 2, 3)))
