"""Augmentation on the device: pure functions over a batch, made to run inside the compiled step.

Shapes: `b` batch, `h w` height and width, `c` channels.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Num, PRNGKeyArray, UInt8


def normalize(
    images: UInt8[Array, "b h w c"],
    mean: Float[Array | np.ndarray, " c"],
    std: Float[Array | np.ndarray, " c"],
) -> Float[Array, "b h w c"]:
    """Pixels in [0, 1], less the mean, over the deviation: `[b h w c]` uint8 to float32."""
    return (images.astype(jnp.float32) / 255 - mean) / std


def random_shift(
    key: PRNGKeyArray, images: Float[Array, "b h w c"], max_shift: int
) -> Float[Array, "b h w c"]:
    """Moves each image by its own whole number of pixels, at most `max_shift` either way.

    Both offsets are uniform; vacated pixels are zero, the mean colour of normalized images.
    """
    margin = (max_shift, max_shift)
    padded = jnp.pad(images, ((0, 0), margin, margin, (0, 0)))
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


def augment(
    key: PRNGKeyArray, images: Float[Array, "b h w c"], *, max_shift: int, flip: bool
) -> Float[Array, "b h w c"]:
    """Shift, then flip; `max_shift=0` and `flip=False` leave out the one and the other."""
    shift_key, flip_key = jax.random.split(key)
    if max_shift:
        images = random_shift(shift_key, images, max_shift)
    return random_flip(flip_key, images) if flip else images
