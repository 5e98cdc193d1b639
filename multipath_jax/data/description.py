"""A data set without its images: all that a trained network has to know of it."""

import dataclasses
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from multipath_jax.data.datasets import Dataset, Split
from multipath_jax.data.encoded import EncodedSplit
from multipath_jax.errors import UserError
from multipath_jax.utils import storage
from multipath_jax.utils.names import shown

# Of mean and deviation in [0, 1], a quarter of a grey level: another version of a JPEG decoder
# rounds other pixels of the same images.
_CLOSE = 1e-3
_LISTED = 5  # class names in a message


@dataclasses.dataclass(frozen=True)
class Examples:
    """What is kept of a split: how many examples it has, and what tells other ones from them."""

    count: int
    fingerprint: str


@dataclasses.dataclass(frozen=True, eq=False)
class Description:
    """What a run keeps beside its checkpoints, so that they are of use without the data.

    Attributes:
      name: of the data set.
      class_names: in the order of the logits.
      stored_shape: height, width and channels of an image as the data set gives it.
      image_shape: the same of an image as the network sees it, after cropping.
      dtype: of the pixels: uint8 or float32.
      mean, std: of the training pixels (uint8 ones in [0, 1]), by channel.
      train, test: the splits.
    """

    name: str
    class_names: tuple[str, ...]
    stored_shape: tuple[int, int, int]
    image_shape: tuple[int, int, int]
    dtype: str
    mean: Float32[np.ndarray, " c"]
    std: Float32[np.ndarray, " c"]
    train: Examples
    test: Examples

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


def describe(dataset: Dataset, image_shape: tuple[int, int, int] | None = None) -> Description:
    """The description of a data set; ``image_shape``: after cropping, if its images are cropped."""
    return Description(
        name=dataset.name,
        class_names=dataset.class_names,
        stored_shape=_shape(dataset.image_shape),
        image_shape=_shape(image_shape or dataset.image_shape),
        dtype=dataset.dtype.name,
        mean=dataset.mean,
        std=dataset.std,
        train=_examples(dataset.train),
        test=_examples(dataset.test),
    )


def _shape(shape: Sequence[int]) -> tuple[int, int, int]:
    height, width, channels = map(int, shape)
    return height, width, channels


def _examples(split: Split | EncodedSplit) -> Examples:
    return Examples(len(split), split.fingerprint)


def differences(trained: Description, now: Description) -> dict[str, str]:
    """What differs between the data that a run was trained on and those that there are now.

    Names and crops apart, which a run's config says.

    Returns:
      For each of `Description`'s attributes that differs, words for it: ``before -> now``.
    """
    found = {}
    if trained.class_names != now.class_names:
        found["class_names"] = _other_classes(trained.class_names, now.class_names)
    if trained.stored_shape != now.stored_shape:
        shapes = ("x".join(map(str, one.stored_shape)) for one in (trained, now))
        found["stored_shape"] = f"shape of the images: {' -> '.join(shapes)}"
    if trained.dtype != now.dtype:
        found["dtype"] = f"type of the pixels: {trained.dtype} -> {now.dtype}"
    for key, split in (("train", "training"), ("test", "test")):
        before, after = getattr(trained, key), getattr(now, key)
        if before.count != after.count:
            found[key] = f"{before.count:,} -> {after.count:,} {split} images"
        elif before != after:
            found[key] = f"other {split} images: {before.fingerprint} -> {after.fingerprint}"
    for key, name in (("mean", "mean"), ("std", "deviation")):
        before, after = getattr(trained, key), getattr(now, key)
        if before.shape != after.shape or np.abs(before - after).max() > _CLOSE:
            found[key] = f"{name} of the training pixels: {_rounded(before)} -> {_rounded(after)}"
    return found


def _other_classes(before: Sequence[str], after: Sequence[str]) -> str:
    gone = [name for name in before if name not in after]
    new = [name for name in after if name not in before]
    if gone and new:
        return f"class names: {_listed(gone)} -> {_listed(new)}"
    if gone or new:
        return f"classes gone: {_listed(gone)}" if gone else f"classes added: {_listed(new)}"
    return f"order of the classes: {_listed(before)} -> {_listed(after)}"


def _listed(names: Sequence[str]) -> str:
    more = [f"and {len(names) - _LISTED} more"] * (len(names) > _LISTED)
    return ", ".join([*map(shown, names[:_LISTED]), *more])


def _rounded(values: Float32[np.ndarray, " c"]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)


def to_json(description: Description) -> str:
    """The description as indented JSON; float32 come back to the bit."""
    values = dataclasses.asdict(description)
    return json.dumps(values, indent=2, default=np.ndarray.tolist) + "\n"


def read_description(path: str | os.PathLike) -> Description:
    """A description written by `to_json`.

    Raises:
      UserError: the file cannot be read or is no such description.
    """
    try:
        return _from_json(json.loads(storage.read(path)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise UserError(
            f"{path} does not say what the run was trained on ({reason}); put back the file that "
            "training wrote, or train anew in another workdir"
        ) from error


def _from_json(found: Any) -> Description:
    return Description(
        name=found["name"],
        class_names=tuple(found["class_names"]),
        stored_shape=_shape(found["stored_shape"]),
        image_shape=_shape(found["image_shape"]),
        dtype=found["dtype"],
        mean=np.array(found["mean"], np.float32),
        std=np.array(found["std"], np.float32),
        train=Examples(**found["train"]),
        test=Examples(**found["test"]),
    )
