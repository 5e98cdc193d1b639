"""Image classification data sets, decoded in host memory or left encoded on disk."""

import dataclasses
import io
import math
import os
import time
import zlib
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from jaxtyping import Array, Float, Float32, Int, Int32, Int64, PRNGKeyArray, UInt8
from PIL import Image

from multipath_jax.data.encoded import EncodedSplit, unreadable
from multipath_jax.data.folder import open_folder
from multipath_jax.data.heads import Heads, heads_of
from multipath_jax.data.images import PIL_MODES, decode
from multipath_jax.data.order import epoch_order
from multipath_jax.data.prepared import one_line, open_prepared
from multipath_jax.data.records import BadRecord, Files, Records, Subset
from multipath_jax.errors import UserError

_READ_AT_ONCE = 1000  # records per call, which halves the time of one call per record
_SAMPLE = 1000  # images from which the statistics of an encoded split are estimated
_SAMPLE_AT_ONCE = 50  # 10 MB of 256x256 pixels
TEST, HELD_OUT = "test", "held_out"  # the evaluated images: test split, or held-out training images


def evaluated(holdout: int) -> str:
    """The kind of images to evaluate on (`TEST` or `HELD_OUT`), if `holdout` are held out."""
    return HELD_OUT if holdout else TEST


@dataclasses.dataclass(frozen=True)
class Split:
    """One split in host memory.

    Attributes:
      images: `[n h w c]`, uint8 or float32.
      labels: int32 `[n]`.
    """

    images: UInt8[np.ndarray, "n h w c"] | Float32[np.ndarray, "n h w c"]
    labels: Int32[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        return self.images.shape[1:]

    @property
    def dtype(self) -> np.dtype:
        """Type of the pixels."""
        return self.images.dtype

    @property
    def fingerprint(self) -> str:
        """A checksum of the labels and the pixels, eight hex digits."""
        return f"{zlib.crc32(np.ascontiguousarray(self.images), zlib.crc32(self.labels)):08x}"

    def order(
        self, key: PRNGKeyArray, epoch: int | Int[Array, ""], batch_size: int
    ) -> Int32[Array, " n"]:
        """The order of training in an epoch, as `epoch_order`; a pure function of the arguments."""
        del batch_size
        return epoch_order(key, epoch, len(self))


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A training and a test split, with their classes and pixel statistics.

    Attributes:
      name: name of the data set.
      train: the training split.
      test: the split to evaluate on.
      class_names: names in the order of the labels.
      mean, std: mean and standard deviation of the training pixels, `[c]`; uint8 pixels are scaled
        to [0, 1] first. Of several data sets, those of each, `[d c]`.
      notes: lines for a run to print, such as what was found in a user's folder.
      evaluated: "test", or "held_out" if `test` holds training images (`held_out_indices`).
      parts: the data sets of which this one consists (`join`), with images of one shape.
      original_shape: of a part, height, width and channels of the images before `join`.
    """

    name: str
    train: Split | EncodedSplit
    test: Split | EncodedSplit
    class_names: tuple[str, ...]
    mean: Float32[np.ndarray, "*d c"]
    std: Float32[np.ndarray, "*d c"]
    notes: tuple[str, ...] = ()
    evaluated: str = TEST
    parts: tuple["Dataset", ...] = ()
    original_shape: tuple[int, int, int] | None = None

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def heads(self) -> Heads | None:
        """The heads of a network for several data sets; None for one."""
        return heads_of(self.parts)

    def statistics(
        self, labels: Int[Array, " b"]
    ) -> tuple[Float[Array | np.ndarray, "..."], Float[Array | np.ndarray, "..."]]:
        """Mean and standard deviation for images with these labels, which broadcast with them.

        Args:
          labels: `[b]`.

        Returns:
          `mean` and `std`, `[c]`; of several data sets, those of each image, `[b 1 1 c]`.
        """
        if not self.parts:
            return self.mean, self.std
        numbers = self.heads.numbers(labels)
        mean, std = (jnp.asarray(one)[numbers, None, None] for one in (self.mean, self.std))
        return mean, std

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        return self.train.image_shape

    @property
    def dtype(self) -> np.dtype:
        """Type of the pixels: uint8, or float32 for a user's arrays."""
        return self.train.dtype


def load_dataset(name: str, data_dir: str | os.PathLike | None, holdout: int = 0) -> Dataset:
    """Reads a whole data set into host memory.

    Args:
      name: "digits" (prepared on first use), "cifar10" or "cifar100" (downloaded and prepared if
        missing and TensorFlow is installed), or any TFDS data set, as `name/config:version`. It
        must be prepared as ArrayRecord files, with the features `image` (uint8, all of one size)
        and `label` and the splits `train` and `test` (or else `validation`).
      data_dir: the folder of prepared data sets; None is TFDS's default, `~/tensorflow_datasets` or
        `$TFDS_DATA_DIR`.
      holdout: if positive, evaluate on this many training images, which are not trained on; the
        test split is not read.

    Returns:
      The data set.

    Raises:
      UserError: the data are missing or unusable.
    """
    builder = open_prepared(name, data_dir)
    _check_features(builder)
    class_names = tuple(builder.info.features["label"].names)
    train_name, test_name = _split_names(builder)
    train = _read_split(builder, train_name)
    if holdout:
        parts = held_out_indices(train.labels, holdout)
        train, test = (Split(train.images[part], train.labels[part]) for part in parts)
    else:
        test = _read_split(builder, test_name)
    if train.images.shape[1:] != test.images.shape[1:]:
        raise UserError(
            f"the images of {builder.data_dir} are {train.images.shape[1:]} in the training split "
            f"and {test.images.shape[1:]} in the other; prepare the set with images of one size"
        )
    statistics = pixel_statistics(train.images)
    return Dataset(name, train, test, class_names, *statistics, evaluated=evaluated(holdout))


def open_encoded(
    name: str,
    data_dir: str | os.PathLike | None,
    size: int,
    source: str | os.PathLike | None = None,
    holdout: int = 0,
) -> Dataset:
    """Opens a data set of images of any size without decoding it.

    Images are decoded and rescaled to `size` x `size` RGB when a batch is loaded (Section 6.1).
    Mean and standard deviation are those of at most 1,000 training images, evenly spaced.

    Args:
      name, data_dir, holdout: as in `load_dataset`.
      size: height and width of the images, in pixels.
      source: a folder of class folders (`folder.open_folder`), used instead of `name` and
        `data_dir`.

    Returns:
      The data set; its splits are `EncodedSplit`s.

    Raises:
      UserError: the data are missing or unusable.
    """
    notes = ()
    if source:
        builder = open_folder(source)
        names, name, notes = ("train", "test"), os.fspath(source), builder.notes
    else:
        builder = open_prepared(name, data_dir)
        _check_features(builder)
        names = _split_names(builder)

    def records(split: str) -> Files | Records:
        return Files(builder.as_data_source(split)) if source else Records(builder, split)

    train = records(names[0])
    if holdout:
        train, test = (Subset(train, part) for part in held_out_indices(train.labels(), holdout))
    else:
        test = records(names[1])
    class_names = tuple(builder.info.features["label"].names)
    split = EncodedSplit(train, size, len(class_names))
    held_out = EncodedSplit(test, size, len(class_names))
    statistics = _sampled_statistics(split)
    return Dataset(name, split, held_out, class_names, *statistics, notes, evaluated(holdout))


def held_out_indices(
    labels: Int32[np.ndarray, " n"], holdout: int
) -> tuple[Int64[np.ndarray, " kept"], Int64[np.ndarray, " held"]]:
    """Splits the training images into those to train on and those to hold out.

    The held-out images are a stratified sample: each class is represented in proportion, to within
    one image. The sample is pseudorandom, and the same in every run.

    Args:
      labels: `[n]`; images with the label -1 (unknown) are not held out.
      holdout: number of images to hold out.

    Returns:
      The indices of the images to train on and of the held-out ones, both in increasing order.

    Raises:
      UserError: no image would remain to train on.
    """
    known = np.flatnonzero(labels >= 0)
    if holdout >= len(known):
        raise UserError(
            f"holdout={holdout} leaves none of the {len(known)} training images; hold out fewer"
        )
    # NumPy guarantees the raw output of a bit generator across versions, not that of a Generator.
    drawn = np.random.PCG64(0).random_raw(len(labels))
    by_class = known[np.lexsort((drawn[known], labels[known]))]
    # Evenly spaced over the images, which are sorted by class.
    places = (np.arange(holdout) * len(known) + len(known) // 2) // holdout
    held = np.zeros(len(labels), bool)
    held[by_class[places]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def _sampled_statistics(
    split: EncodedSplit,
) -> tuple[Float32[np.ndarray, " c"], Float32[np.ndarray, " c"]]:
    """Mean and standard deviation `[c]` of a fixed sample of a split's images."""
    count = min(len(split), _SAMPLE)
    chosen = np.arange(count) * len(split) // count
    parts = np.split(chosen, range(_SAMPLE_AT_ONCE, count, _SAMPLE_AT_ONCE))
    return statistics(sum(histograms(split.load(part).images) for part in parts))


def pixel_statistics(
    images: UInt8[np.ndarray, "n h w c"],
) -> tuple[Float32[np.ndarray, " c"], Float32[np.ndarray, " c"]]:
    """Mean and standard deviation of each channel, of pixels scaled to [0, 1].

    Computed from exact integer sums.

    Args:
      images: uint8 `[n h w c]`.

    Returns:
      Mean and standard deviation, float32 `[c]`; 1 for a constant channel's deviation.
    """
    return statistics(histograms(images))


def histograms(images: UInt8[np.ndarray, "n h w c"]) -> Int64[np.ndarray, "c 256"]:
    """The number of pixels with each value, per channel: `[n h w c] -> [c 256]`."""
    channels = np.moveaxis(images, -1, 0)
    return np.stack([np.bincount(channel.ravel(), minlength=256) for channel in channels])


def statistics(
    histograms: Int64[np.ndarray, "c 256"],
) -> tuple[Float32[np.ndarray, " c"], Float32[np.ndarray, " c"]]:
    """Mean and standard deviation `[c]` in [0, 1] of channels with these histograms."""
    levels = np.arange(256)
    moments = []
    for histogram in histograms:
        count = int(histogram.sum())
        total, squares = int(histogram @ levels), int(histogram @ levels**2)
        # 1 for a constant channel avoids a division by zero.
        deviation = math.sqrt(count * squares - total * total) / (255 * count) or 1.0
        moments.append((total / (255 * count), deviation))
    mean, std = np.array(moments, np.float32).T
    return mean, std


def _check_features(builder: tfds.core.DatasetBuilder) -> None:
    """Raises `UserError` unless the data set has uint8 images and class labels."""
    wanted = {"image": tfds.features.Image, "label": tfds.features.ClassLabel}
    features = builder.info.features
    for key, kind in wanted.items():
        if key not in features or not isinstance(features[key], kind):
            raise UserError(
                f"{builder.data_dir} has no feature {key!r} of the kind {kind.__name__}, only "
                f"{_listed(features)}; prepare it with that feature, or choose another data set"
            )
    dtype = np.dtype(features["image"].np_dtype)
    if dtype != np.uint8:
        raise UserError(
            f"the images of {builder.data_dir} are of type {dtype.name}, not uint8; "
            "prepare the set with 8-bit images, or choose another data set"
        )


def _listed(features: tfds.features.FeaturesDict) -> str:
    return ", ".join(f"{key!r} ({type(value).__name__})" for key, value in features.items())


def _split_names(builder: tfds.core.DatasetBuilder) -> tuple[str, str]:
    """Names of the training and the test split. Raises `UserError` if one is missing."""
    splits = [name for name, split in builder.info.splits.items() if split.num_examples]
    test = "test" if "test" in splits else "validation"
    if "train" not in splits or test not in splits:
        raise UserError(
            f"{builder.data_dir} has the splits {', '.join(map(repr, splits)) or '(none)'}, but "
            "'train' and 'test' (or 'validation') are needed; prepare it with these, or choose "
            "another data set"
        )
    return "train", test


def _read_split(builder: tfds.core.DatasetBuilder, name: str) -> Split:
    """Reads and decodes one split. Raises `UserError` that names a record it cannot use."""
    start = time.monotonic()
    count = builder.info.splits[name].num_examples
    num_classes = builder.info.features["label"].num_classes
    labels = np.empty(count, np.int32)
    channels = builder.info.features["image"].shape[-1]
    for index, (image, label) in enumerate(_examples(Records(builder, name), channels)):
        if index == 0:
            images = np.empty((count, *image.shape), np.uint8)
        if image.shape != images.shape[1:]:
            raise UserError(
                f"the images of {builder.data_dir} are not of one size: record 0 of {name!r} is "
                f"{images.shape[1:]}, record {index} is {image.shape}; prepare the set with "
                "images of one size, or choose another data set"
            )
        if not 0 <= label < num_classes:
            raise UserError(
                f"record {index} of {name!r} in {builder.data_dir} has the label {label}, not one "
                f"of 0 to {num_classes - 1}; choose a data set whose splits are all labelled"
            )
        images[index], labels[index] = image, label
    logging.info("%s: read %d images in %.1f s", name, count, time.monotonic() - start)
    return Split(images, labels)


def _examples(records: Records, channels: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yields images `[h w c]` and labels in the order of the files."""
    for start in range(0, len(records), _READ_AT_ONCE):
        indices = range(start, min(start + _READ_AT_ONCE, len(records)))
        try:
            read = records.read(indices)
        except BadRecord as error:
            which = f"a record from {indices[0]} to {indices[-1]} {records.where}"
            raise unreadable(which, error, records.remedy) from error
        for index, (encoded, label) in zip(indices, read, strict=True):
            try:
                image = _decode(encoded, channels)
            except (OSError, SyntaxError, ValueError) as error:
                raise unreadable(records.name(index), one_line(error), records.remedy) from error
            yield image, label


def _decode(encoded: bytes, channels: int) -> UInt8[np.ndarray, "h w c"]:
    """Decodes as `images.decode`. Raises `OSError`, `SyntaxError` or `ValueError` if damaged."""
    image, mode = Image.open(io.BytesIO(encoded)), PIL_MODES[channels]
    # Fast path: without metadata an image is neither rotated nor transparent.
    plain = image.mode == mode and not image.info
    pixels = np.asarray(image if plain else decode(encoded, mode=mode))
    return pixels.reshape(*pixels.shape[:2], channels)
