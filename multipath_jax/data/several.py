"""Several data sets as one, for a network with a head for each."""

import contextlib
import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Int, Int32, Num, PRNGKeyArray

from multipath_jax.data.datasets import (
    Dataset,
    Split,
    evaluated,
    held_out_indices,
    load_dataset,
    pixel_statistics,
)
from multipath_jax.data.encoded import EncodedSplit
from multipath_jax.data.images import resized
from multipath_jax.data.order import divided, mixed_order
from multipath_jax.errors import UserError

BETWEEN = "+"  # in `config.dataset.name`, between the names of several data sets

Proportions = Sequence[float | int] | Num[np.ndarray, " d"]


@dataclasses.dataclass(frozen=True)
class MixedSplit(Split):
    """The training splits of several data sets, one after another.

    Attributes:
      sizes: number of images of each.
      shares: number of images of each in an epoch, which has as many images as all of them.
    """

    sizes: tuple[int, ...]
    shares: tuple[int, ...]

    def order(
        self, key: PRNGKeyArray, epoch: int | Int[Array, ""], batch_size: int
    ) -> Int32[Array, " n"]:
        """The order of training in an epoch, as `mixed_order`."""
        return mixed_order(key, epoch, self.sizes, self.shares, batch_size)


def load_several(
    names: Sequence[str],
    data_dir: str | os.PathLike | None,
    holdout: int = 0,
    proportions: Proportions | None = None,
) -> Dataset:
    """Reads several data sets into host memory and joins them.

    Args:
      names: their names, as in `load_dataset`.
      data_dir: as in `load_dataset`.
      holdout: if positive, evaluate on this many training images, which are not trained on, of
        each data set in proportion to its size.
      proportions: as in `join`.

    Returns:
      The data set.

    Raises:
      UserError: the data of one are missing or unusable, or they cannot be joined.
    """
    _check_names(names)
    datasets = [load_dataset(name, data_dir) for name in names]
    if holdout:
        counts = divided(holdout, [len(dataset.train) for dataset in datasets])
        datasets = list(map(_held_out, datasets, counts))
    return join(*datasets, proportions=proportions)


def _held_out(dataset: Dataset, count: int) -> Dataset:
    """The data set with ``count`` of its training images in place of the test split."""
    if not count:
        raise UserError(
            f"dataset.holdout leaves no image of {dataset.name} to evaluate on; hold out more"
        )
    images, labels = dataset.train.images, dataset.train.labels
    train, test = (Split(images[at], labels[at]) for at in held_out_indices(labels, count))
    mean, std = pixel_statistics(train.images)
    return dataclasses.replace(
        dataset, train=train, test=test, mean=mean, std=std, evaluated=evaluated(count)
    )


def join(*datasets: Dataset, proportions: Proportions | None = None) -> Dataset:
    """Makes one data set of several, for a network with a head for each.

    Images are brought to one shape: height and width are the largest of all data sets, to which
    the others are rescaled (Lanczos filter, ignoring the aspect ratio, as in Section 6.1), and gray
    images become RGB if others are. Each data set is normalized by its own mean and standard
    deviation. Classes are numbered over all data sets and named ``data set/class``.

    Every batch has the data sets in the given proportions. An epoch has as many images as all
    training splits together.

    Args:
      *datasets: two or more data sets in memory with different names, such as `load_dataset` and
        `from_arrays` return.
      proportions: a positive weight for each; None: the number of its training images, so that
        every image is used once per epoch, as with one data set.

    Returns:
      The data set; `Dataset.parts` are those of which it consists.

    Raises:
      UserError: the data sets do not fit together; the message says why.
    """
    _check(datasets)
    shape = tuple(max(sizes) for sizes in zip(*(one.image_shape for one in datasets), strict=True))
    parts = [_brought_to(one, shape) for one in datasets]
    names, sizes = [one.name for one in parts], [len(one.train) for one in parts]
    shares = _shares(names, sizes, proportions)
    train = MixedSplit(*_joined(parts, "train"), tuple(sizes), shares)
    test = Split(*_joined(parts, "test"))
    return Dataset(
        BETWEEN.join(names),
        train,
        test,
        tuple(f"{one.name}/{name}" for one in parts for name in one.class_names),
        np.stack([one.mean for one in parts]),
        np.stack([one.std for one in parts]),
        (_note(parts, shares), *(note for one in parts for note in one.notes)),
        parts[0].evaluated,
        tuple(_views(parts, train, test)),
    )


def brought_to(
    images: Num[np.ndarray, "n h w c"], shape: Sequence[int]
) -> Num[np.ndarray, "n h2 w2 c2"]:
    """Rescales images and repeats a gray channel, as in `join`.

    Args:
      images: `[n h w c]`; uint8 if height or width change.
      shape: height, width and channels; the channels are c, or any number if c is 1.
    """
    height, width, channels = shape
    if images.shape[1:3] != (height, width):
        images = resized(images, height, width)
    return images if images.shape[3] == channels else np.repeat(images, channels, axis=3)


def _brought_to(dataset: Dataset, shape: tuple[int, int, int]) -> Dataset:
    """The data set with images of another shape and their statistics."""
    train, test = (
        Split(brought_to(split.images, shape), split.labels)
        for split in (dataset.train, dataset.test)
    )
    mean, std = (np.repeat(one, shape[2] // len(one)) for one in (dataset.mean, dataset.std))
    if dataset.image_shape[:2] != shape[:2]:
        mean, std = pixel_statistics(train.images)
    return dataclasses.replace(
        dataset, train=train, test=test, mean=mean, std=std, original_shape=dataset.image_shape
    )


def _joined(parts: Sequence[Dataset], split: str) -> tuple[np.ndarray, np.ndarray]:
    """The images of all data sets, and their labels, numbered over all data sets."""
    splits = [getattr(part, split) for part in parts]
    starts = np.cumsum([0, *(part.num_classes for part in parts[:-1])], dtype=np.int32)
    labels = [one.labels + start for one, start in zip(splits, starts, strict=True)]
    return np.concatenate([one.images for one in splits]), np.concatenate(labels)


def _views(parts: Sequence[Dataset], train: Split, test: Split) -> list[Dataset]:
    """The data sets with views of the joined images, so that memory is not used twice."""
    found, starts = [], [0, 0]
    for part in parts:
        splits = []
        for number, (own, whole) in enumerate(((part.train, train), (part.test, test))):
            stop = starts[number] + len(own)
            splits.append(Split(whole.images[starts[number] : stop], own.labels))
            starts[number] = stop
        found.append(dataclasses.replace(part, train=splits[0], test=splits[1]))
    return found


def _shares(
    names: Sequence[str], sizes: Sequence[int], proportions: Proportions | None
) -> tuple[int, ...]:
    """The number of images of each data set in an epoch. Raises UserError if one is 0."""
    weights = sizes if proportions is None else _weights(proportions)
    if len(weights) != len(names) or not all(0 < weight < math.inf for weight in weights):
        raise UserError(
            f"proportions {_listed(weights)}: {len(names)} positive numbers are needed, one for "
            f"each of {', '.join(names)}"
        )
    shares = tuple(divided(sum(sizes), weights))
    if 0 in shares:
        raise UserError(
            f"proportions {_listed(weights)} leave no image of {names[shares.index(0)]} in an "
            "epoch; give it more"
        )
    return shares


def _weights(proportions: Any) -> list[float]:
    """The proportions as numbers. Raises UserError for anything but a sequence of numbers."""
    if not isinstance(proportions, str):
        with contextlib.suppress(TypeError, ValueError):
            return [float(value) for value in proportions]
    raise UserError(
        f"proportions={proportions!r} must be numbers, one for each data set, such as (1, 2)"
    )


def _listed(values: Sequence[float | int]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _note(parts: Sequence[Dataset], shares: Sequence[int]) -> str:
    shape = "x".join(map(str, parts[0].image_shape))
    each = (
        f"{part.name} {len(part.train):,} training images, {100 * share / sum(shares):.1f} % of "
        "every batch"
        for part, share in zip(parts, shares, strict=True)
    )
    return f"{len(parts)} data sets, with images of {shape}: {'; '.join(each)}"


def _check_names(names: Sequence[str]) -> None:
    """Raises UserError unless there are two or more different names."""
    if "" in names or len(names) < 2:
        raise UserError(
            f"several data sets need two or more names, such as cifar10{BETWEEN}digits, got "
            f"{BETWEEN.join(names)!r}"
        )
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"the data set {twice[0]} is named twice; name each once")


def _check(datasets: Sequence[Dataset]) -> None:
    """Raises UserError for data sets that cannot be joined."""
    for one in datasets:
        if not isinstance(one, Dataset):
            kind = type(one).__name__
            raise UserError(f"join takes data sets one by one, as in join(a, b), not a {kind}")
    _check_names([one.name for one in datasets])
    for one in datasets:
        if one.parts:
            raise UserError(f"{one.name} consists of several data sets already; join all at once")
        if isinstance(one.train, EncodedSplit):
            raise UserError(
                f"the images of {one.name} are encoded; several data sets must be in memory"
            )
    types = {one.name: one.dtype.name for one in datasets}
    sizes = {one.name: "x".join(map(str, one.image_shape[:2])) for one in datasets}
    channels = {one.name: one.image_shape[2] for one in datasets}
    kinds = {one.name: one.evaluated for one in datasets}
    if _differ(types):
        raise UserError(f"pixels of {_each(types)} do not fit together; convert them to one type")
    if _differ(sizes) and "uint8" not in types.values():
        raise UserError(
            f"float32 images of {_each(sizes)} do not fit together; rescale them to one size"
        )
    if _differ(channels) and {*channels.values()} != {1, 3}:
        raise UserError(
            f"images of {_each(channels)} channels do not fit together; only gray images become RGB"
        )
    if _differ(kinds):
        raise UserError(
            f"evaluation on {_each(kinds)} images does not fit together; hold out images of all "
            "data sets, or of none"
        )


def _differ(values: dict[str, Any]) -> bool:
    return len({*values.values()}) > 1


def _each(values: dict[str, Any]) -> str:
    return " and ".join(f"{value} ({name})" for name, value in values.items())
