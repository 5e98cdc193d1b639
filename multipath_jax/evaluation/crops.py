"""The crops of an image that are evaluated: center, ten crops (Section 6.4), mirror image.

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
    """The center crop of each image.

    If the margin is odd, its smaller half is above and to the left.

    Args:
      images: ``[b h w c]``.
      side: height and width of the crop, in pixels.

    Returns:
      ``[b side side c]``.
    """
    top, left = ((length - side) // 2 for length in images.shape[1:3])
    return images[:, top : top + side, left : left + side]


def ten_crops(images: Num[Array, "b h w c"], side: int) -> Num[Array, "10 b s s c"]:
    """The four corner crops and the center crop of each image, and their mirror images.

    Section 6.4, as in Krizhevsky et al. (2012).

    Args:
      images: ``[b h w c]``.
      side: height and width of the crops, in pixels.

    Returns:
      ``[10 b side side c]``.
    """
    top, left = slice(side), slice(side)
    bottom, right = slice(-side, None), slice(-side, None)
    corners = [images[:, y, x] for y in (top, bottom) for x in (left, right)]
    five = jnp.stack([*corners, center_crop(images, side)])
    return jnp.concatenate([five, five[..., ::-1, :]])


def ten_crop_log_probabilities(
    classify: Classify, images: Num[Array, "b h w c"], side: int
) -> Float[Array, "b classes"]:
    """Log of the softmax probabilities averaged over the ten crops of each image (Section 6.4).

    Args:
      classify: maps images ``[b side side c]`` to logits ``[b classes]``.
      images: ``[b h w c]``.
      side: height and width of the crops, in pixels.

    Returns:
      float32 ``[b classes]``.
    """
    return _mean_log_probabilities(classify, ten_crops(images, side))


def mirrored_log_probabilities(
    classify: Classify, images: Num[Array, "b h w c"]
) -> Float[Array, "b classes"]:
    """Log of the softmax probabilities averaged over each image and its mirror image.

    Args:
      classify: maps images ``[b h w c]`` to logits ``[b classes]``.
      images: ``[b h w c]``.

    Returns:
      float32 ``[b classes]``.
    """
    return _mean_log_probabilities(classify, jnp.stack([images, images[..., ::-1, :]]))


def _mean_log_probabilities(
    classify: Classify, views: Num[Array, "views b h w c"]
) -> Float[Array, "b classes"]:
    # One view at a time, to save memory.
    logits = jax.lax.map(classify, views)
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    return jax.nn.logsumexp(log_probabilities, axis=0) - jnp.log(float(len(views)))
