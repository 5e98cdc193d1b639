"""Metadata of a data set: all that is needed to use a trained network without the images."""

import dataclasses
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from multipath_jax.data.datasets import Dataset, Split
from multipath_jax.data.encoded import EncodedSplit
from multipath_jax.data.heads import Heads, heads_of
from multipath_jax.errors import UserError
from multipath_jax.utils import storage
from multipath_jax.utils.names import printable

# Tolerance for mean and deviation in [0, 1], a quarter of a grey level: JPEG decoders of different
# versions round differently.
_CLOSE = 1e-3
_LISTED = 5  # class names in a message


@dataclasses.dataclass(frozen=True)
class Examples:
    """Metadata of a split.

    Attributes:
      count: number of examples.
      fingerprint: differs between splits of different examples.
    """

    count: int
    fingerprint: str


@dataclasses.dataclass(frozen=True, eq=False)
class Description:
    """Metadata of a data set. A run stores it beside its checkpoints, to use them without the data.

    Attributes:
      name: name of the data set.
      class_names: names in the order of the logits.
      stored_shape: height, width and channels of the images as stored.
      image_shape: height, width and channels after cropping, as the network takes them.
      dtype: type of the pixels, uint8 or float32.
      mean, std: mean and standard deviation of the training pixels, `[c]`; uint8 pixels are scaled
        to [0, 1] first. Of several data sets, those of each, `[d c]`.
      train, test: metadata of the splits.
      parts, original_shape: as in `Dataset`.
      shares: of several data sets, the number of images of each in an epoch.
    """

    name: str
    class_names: tuple[str, ...]
    stored_shape: tuple[int, int, int]
    image_shape: tuple[int, int, int]
    dtype: str
    mean: Float32[np.ndarray, "*d c"]
    std: Float32[np.ndarray, "*d c"]
    train: Examples
    test: Examples
    parts: tuple["Description", ...] = ()
    original_shape: tuple[int, int, int] | None = None
    shares: tuple[int, ...] = ()

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def heads(self) -> Heads | None:
        """The heads of a network for several data sets; None for one."""
        return heads_of(self.parts)


def describe(dataset: Dataset, image_shape: tuple[int, int, int] | None = None) -> Description:
    """Makes the description of a data set.

    Args:
      dataset: the data set.
      image_shape: height, width and channels after cropping; None if images are not cropped.

    Returns:
      The description.
    """
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
        parts=tuple(describe(part, image_shape) for part in dataset.parts),
        original_shape=dataset.original_shape and _shape(dataset.original_shape),
        shares=getattr(dataset.train, "shares", ()),
    )


def _shape(shape: Sequence[int]) -> tuple[int, int, int]:
    height, width, channels = map(int, shape)
    return height, width, channels


def _examples(split: Split | EncodedSplit) -> Examples:
    return Examples(len(split), split.fingerprint)


def differences(trained: Description, now: Description) -> dict[str, str]:
    """Compares the data that a run was trained on with other data.

    Names and crops are not compared: they are part of the config.

    Args:
      trained: the data that the run was trained on.
      now: the other data.

    Returns:
      For each attribute of `Description` that differs, a phrase with ``before -> now``.
    """
    found = {}
    if trained.class_names != now.class_names:
        found["class_names"] = _other_classes(trained.class_names, now.class_names)
    if trained.stored_shape != now.stored_shape:
        shapes = ("x".join(map(str, one.stored_shape)) for one in (trained, now))
        found["stored_shape"] = f"shape of the images: {' -> '.join(shapes)}"
    if trained.dtype != now.dtype:
        found["dtype"] = f"type of the pixels: {trained.dtype} -> {now.dtype}"
    for key, split in (("train", "training"), ("test", "evaluation")):
        before, after = getattr(trained, key), getattr(now, key)
        if before.count != after.count:
            found[key] = f"{before.count:,} -> {after.count:,} {split} images"
        elif before != after:
            found[key] = f"different {split} images: {before.fingerprint} -> {after.fingerprint}"
    for key, name in (("mean", "mean"), ("std", "deviation")):
        before, after = getattr(trained, key), getattr(now, key)
        if before.shape != after.shape or np.abs(before - after).max() > _CLOSE:
            found[key] = f"{name} of the training pixels: {_rounded(before)} -> {_rounded(after)}"
    if trained.shares and now.shares and trained.shares != now.shares:
        shares = (", ".join(map(str, one.shares)) for one in (trained, now))
        found["shares"] = f"images of each data set in an epoch: {' -> '.join(shares)}"
    return found


def _other_classes(before: Sequence[str], after: Sequence[str]) -> str:
    gone = [name for name in before if name not in after]
    new = [name for name in after if name not in before]
    if gone and new:
        return f"class names: {_listed(gone)} -> {_listed(new)}"
    if gone or new:
        return f"classes removed: {_listed(gone)}" if gone else f"classes added: {_listed(new)}"
    return f"order of the classes: {_listed(before)} -> {_listed(after)}"


def _listed(names: Sequence[str]) -> str:
    more = [f"and {len(names) - _LISTED} more"] * (len(names) > _LISTED)
    return ", ".join([*map(printable, names[:_LISTED]), *more])


def _rounded(values: Float32[np.ndarray, "*d c"]) -> str:
    return ", ".join(f"{value:.4f}" for value in values.ravel())


def to_json(description: Description) -> str:
    """The description as indented JSON; `read_description` restores float32 exactly."""
    values = _values(description)
    return json.dumps(values, indent=2, default=np.ndarray.tolist) + "\n"


def _values(description: Description) -> dict[str, Any]:
    """The attributes by name, without those that are of several data sets, if it is of one."""
    values = dataclasses.asdict(description)
    values["parts"] = list(map(_values, description.parts))
    absent = [name for name in ("parts", "original_shape", "shares") if not values[name]]
    return {name: value for name, value in values.items() if name not in absent}


def read_description(path: str | os.PathLike) -> Description:
    """Reads a description written by `to_json`.

    Raises:
      UserError: the file cannot be read or is not such a description.
    """
    try:
        return _from_json(json.loads(storage.read(path)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise UserError(
            f"{path} does not say what the run was trained on ({reason}); restore the file that "
            "training wrote, or train again in another workdir"
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
        parts=tuple(map(_from_json, found.get("parts", ()))),
        original_shape=_shape(found["original_shape"]) if "original_shape" in found else None,
        shares=tuple(found.get("shares", ())),
    )
