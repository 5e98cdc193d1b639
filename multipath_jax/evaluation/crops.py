"""The views of an image by which it is classified: its centre, ten crops (Section 6.4), mirrored.

Shapes: `b` batch, `h w` height and width, `s` side of a crop, `c` channels.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

Classify = Callable[[Num[Array, "b s s c"]], Float[Array, "b classes"]]


def center_crop(
    images: Num[Array | np.ndarray, "b h w c"], side: int
) -> Num[Array | np.ndarray, "b s s c"]:
    """The middle of each image; of an odd margin the smaller half is above and to the left."""
    top, left = ((length - side) // 2 for length in images.shape[1:3])
    return images[:, top : top + side, left : left + side]


def ten_crops(images: Num[Array, "b h w c"], side: int) -> Num[Array, "10 b s s c"]:
    """The four corners and the centre of each image, and the mirror images of these five."""
    top, left = slice(side), slice(side)
    bottom, right = slice(-side, None), slice(-side, None)
    corners = [images[:, y, x] for y in (top, bottom) for x in (left, right)]
    five = jnp.stack([*corners, center_crop(images, side)])
    return jnp.concatenate([five, five[..., ::-1, :]])


def ten_crop_log_probabilities(
    classify: Classify, images: Num[Array, "b h w c"], side: int
) -> Float[Array, "b classes"]:
    """The logarithm of the mean of the softmaxes of an image's ten crops."""
    return _mean_log_probabilities(classify, ten_crops(images, side))


def mirrored_log_probabilities(
    classify: Classify, images: Num[Array, "b h w c"]
) -> Float[Array, "b classes"]:
    """The logarithm of the mean of the softmaxes of an image and of its mirror image."""
    return _mean_log_probabilities(classify, jnp.stack([images, images[..., ::-1, :]]))


def _mean_log_probabilities(
    classify: Classify, views: Num[Array, "views b h w c"]
) -> Float[Array, "b classes"]:
    # One view after the other: all at once would take so many times the memory.
    logits = jax.lax.map(classify, views)
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    return jax.nn.logsumexp(log_probabilities, axis=0) - jnp.log(float(len(views)))
