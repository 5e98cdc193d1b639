"""A data set from a user's own arrays."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Num
from numpy.typing import ArrayLike

from multipath_jax.data.datasets import Dataset, Split, pixel_statistics
from multipath_jax.errors import UserError

_MOST_CLASSES = 1_000_000  # a larger label is most likely an identifier, or garbage


def from_arrays(
    x: ArrayLike,
    y: ArrayLike,
    x_test: ArrayLike,
    y_test: ArrayLike,
    *,
    class_names: Sequence[str] | np.ndarray | None = None,
    name: str = "arrays",
) -> Dataset:
    """Makes a data set from arrays in memory, for `Trainer(dataset=)`.

    Pixels are uint8, or of any floating-point type and range; the latter are converted to float32.
    Training normalizes them by the mean and standard deviation of each channel of ``x``.

    Args:
      x: training images ``[n h w c]``, or ``[n h w]`` for one channel.
      y: training labels ``[n]``, integers from zero.
      x_test: test images of the same shape and type, ``[k h w c]`` or ``[k h w]``.
      y_test: test labels ``[k]``.
      class_names: names in the order of the labels; the numbers themselves by default.
      name: name of the data set, for logs.

    Returns:
      The data set. Arrays that have the right type already are not copied.

    Raises:
      UserError: the arrays have wrong or different shapes or types, labels are negative or far
        too large, values are not finite, or there are too few class names.
    """
    train, test = _split(x, y, "x", "y"), _split(x_test, y_test, "x_test", "y_test")
    for what, before, after in (
        ("shape", train.image_shape, test.image_shape),
        ("type", train.images.dtype, test.images.dtype),
    ):
        if before != after:
            raise UserError(f"x has images of {what} {before}, x_test of {what} {after}")
    count = 1 + int(max(train.labels.max(), test.labels.max()))
    names = tuple(map(str, range(count) if class_names is None else class_names))
    if len(names) < count or len(set(names)) < len(names):
        raise UserError(
            f"class_names needs {count} or more different names, one for each class of y and "
            f"y_test, got {len(names)}"
        )
    return Dataset(name, train, test, names, *_statistics(train.images))


def _split(images: ArrayLike, labels: ArrayLike, x: str, y: str) -> Split:
    """Checks and converts the arrays of one split; ``x`` and ``y`` are their names in errors."""
    images, labels = _array(images, x), _array(labels, y)
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or 0 in images.shape:
        raise UserError(f"{x} must be images [n h w c] or [n h w], got shape {images.shape}")
    if jnp.issubdtype(images.dtype, jnp.floating):  # NumPy does not count bfloat16
        given = images
        with np.errstate(over="ignore"):
            images = given.astype(np.float32, copy=False)
        if not np.isfinite(images).all():
            if np.isfinite(given).all():
                raise UserError(f"{x} has values that are too large for float32; scale them")
            raise UserError(f"{x} has values that are not finite; remove these images")
    elif images.dtype != np.uint8:
        raise UserError(f"{x} must be uint8 or a floating-point type, got {images.dtype}")
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"{y} must be {len(images)} integers, one label per image of {x}, got shape "
            f"{labels.shape} of type {labels.dtype}"
        )
    if labels.min() < 0:
        raise UserError(f"{y} has the label {labels.min()}; classes are numbered from 0")
    if labels.max() >= _MOST_CLASSES:
        raise UserError(
            f"{y} has the label {labels.max()}, of more than {_MOST_CLASSES:,} classes; number the "
            "classes from 0 without gaps, as np.unique(labels, return_inverse=True) does"
        )
    return Split(images, labels.astype(np.int32))


def _array(values: ArrayLike, name: str) -> np.ndarray:
    try:
        return np.asarray(values)
    except ValueError as error:
        raise UserError(f"{name} must be an array, with rows of one length ({error})") from error


def _statistics(
    images: Num[np.ndarray, "n h w c"],
) -> tuple[Float32[np.ndarray, " c"], Float32[np.ndarray, " c"]]:
    """Mean and standard deviation of each channel; uint8 pixels are scaled to [0, 1] first."""
    if images.dtype == np.uint8:
        return pixel_statistics(images)
    axes = (0, 1, 2)
    std = images.std(axes, dtype=np.float64)
    std[std == 0] = 1.0  # avoids a division by zero for a constant channel
    return images.mean(axes, dtype=np.float64).astype(np.float32), std.astype(np.float32)
