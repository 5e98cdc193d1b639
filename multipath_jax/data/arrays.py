"""A data set made of a user's own arrays."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Num
from numpy.typing import ArrayLike

from multipath_jax.data.datasets import Dataset, Split, pixel_statistics
from multipath_jax.errors import UserError


def from_arrays(
    x: ArrayLike,
    y: ArrayLike,
    x_test: ArrayLike,
    y_test: ArrayLike,
    *,
    class_names: Sequence[str] | None = None,
    name: str = "arrays",
) -> Dataset:
    """A data set from arrays in memory, for `Trainer(dataset=)`.

    Pixels are uint8, or of any floating type and scale, which becomes float32. Either are
    normalized by the mean and deviation of each channel of ``x``.

    Args:
      x: training images ``[n h w c]``, or ``[n h w]`` for one channel.
      y: their classes ``[n]``, integers from zero.
      x_test: test images of the same size and type.
      y_test: their classes.
      class_names: in the order of the classes; their numbers by default.
      name: of the data set, for logs.

    Returns:
      The data set; the arrays are not copied where they are of the right type already.

    Raises:
      UserError: arrays of other shapes or types, labels that are no classes, values that are not
        finite.
    """
    train, test = _split(x, y, "x", "y"), _split(x_test, y_test, "x_test", "y_test")
    for what, before, after in (
        ("shape", train.image_shape, test.image_shape),
        ("type", train.images.dtype, test.images.dtype),
    ):
        if before != after:
            raise UserError(f"x has images of {what} {before}, x_test of {what} {after}")
    count = 1 + int(max(train.labels.max(), test.labels.max()))
    names = tuple(map(str, class_names or range(count)))
    if len(names) < count or len(set(names)) < len(names):
        raise UserError(
            f"class_names needs {count} or more different names, one for each class of y and "
            f"y_test, got {len(names)}"
        )
    return Dataset(name, train, test, names, *_statistics(train.images))


def _split(images: ArrayLike, labels: ArrayLike, x: str, y: str) -> Split:
    """``x`` and ``y``: the names of the arrays in messages."""
    images, labels = np.asarray(images), np.asarray(labels)
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or 0 in images.shape:
        raise UserError(f"{x} needs images [n h w c] or [n h w], got shape {images.shape}")
    if np.issubdtype(images.dtype, np.floating):
        images = images.astype(np.float32, copy=False)
        if not np.isfinite(images).all():
            raise UserError(f"{x} has values that are not finite; leave these images out")
    elif images.dtype != np.uint8:
        raise UserError(f"{x} needs pixels of type uint8 or a floating one, got {images.dtype}")
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"{y} needs {len(images)} integers, a class for each image of {x}, got shape "
            f"{labels.shape} of type {labels.dtype}"
        )
    if labels.min() < 0:
        raise UserError(f"{y} has the label {labels.min()}; classes are numbered from 0")
    return Split(images, labels.astype(np.int32))


def _statistics(
    images: Num[np.ndarray, "n h w c"],
) -> tuple[Float32[np.ndarray, " c"], Float32[np.ndarray, " c"]]:
    """Mean and deviation of each channel: of uint8 pixels in [0, 1], of others as they are."""
    if images.dtype == np.uint8:
        return pixel_statistics(images)
    axes = (0, 1, 2)
    std = images.std(axes, dtype=np.float64)
    std[std == 0] = 1.0  # a channel of one value has nothing to scale
    return images.mean(axes, dtype=np.float64).astype(np.float32), std.astype(np.float32)
