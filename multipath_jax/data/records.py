"""The records of a split, read at random: encoded images and their labels."""

import contextlib
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf.message import DecodeError
from jaxtyping import Int, Int32
from tensorflow_datasets.proto import tf_example_pb2

from multipath_jax.data.folder import FolderSource
from multipath_jax.data.images import BadImage
from multipath_jax.data.prepared import one_line, start_again

_LABELS_AT_ONCE = 1000  # records; some 40 MB of photographs


class Record(NamedTuple):
    """An image as it is stored, and its class."""

    image: bytes
    label: int


class BadRecord(ValueError):
    """A record, or one of several, that cannot be read; the message is the reason, in one line."""


class Records:
    """One split of a prepared data set. It can be pickled, so that other processes read it too.

    Attributes:
      where: what to say of where the records are.
      remedy: what to do where one cannot be read.
      fingerprint: name, configuration and version of the data set.
    """

    def __init__(self, builder: tfds.core.DatasetBuilder, split: str):
        self.where = f"of {split!r} in {builder.data_dir}"
        self.remedy = start_again(builder.data_dir)
        self.fingerprint = builder.info.full_name
        source = builder.as_data_source(split, file_format="array_record")
        self._reader = source.data_source  # the files alone; TFDS's own pickles a whole builder

    def __len__(self) -> int:
        return len(self._reader)

    def __getitem__(self, index: int) -> Record:
        """One of them. Raises `BadRecord` if it cannot be read."""
        with _one_error():
            return _parse(self._reader[index])

    def read(self, indices: Sequence[int]) -> list[Record]:
        """Several, by one call. Raises `BadRecord` if one cannot be read.

        That takes half the time of one by one, but more of the processor: the reader has threads.
        """
        with _one_error():
            # Parsed here, since TFDS's own way takes half as long again.
            return [_parse(record) for record in self._reader.__getitems__(indices)]

    def name(self, index: int) -> str:
        """How to speak of one of them."""
        return f"record {index} {self.where}"

    def labels(self) -> Int32[np.ndarray, " n"]:
        """Of all records, which are read for it; -1 of those that cannot be."""
        labels = np.full(len(self), -1, np.int32)
        for start in range(0, len(self), _LABELS_AT_ONCE):
            indices = range(start, min(start + _LABELS_AT_ONCE, len(self)))
            try:
                labels[start : indices.stop] = [record.label for record in self.read(indices)]
            except BadRecord:
                for index in indices:
                    with contextlib.suppress(BadRecord):
                        labels[index] = self[index].label
        return labels


class Files:
    """One split of a folder of class folders, as `Records`."""

    remedy = "mend or remove that file"

    def __init__(self, source: FolderSource):
        self._images = source.images

    def __len__(self) -> int:
        return len(self._images)

    @property
    def fingerprint(self) -> str:
        """A checksum of the classes, names and sizes of all files, wherever the folder lies."""
        listed = ((image.label, image.name, image.size) for image in self._images)
        return f"{zlib.crc32(repr(list(listed)).encode()):08x}"

    def __getitem__(self, index: int) -> Record:
        """One image. Raises `BadRecord` if it cannot be read."""
        image = self._images[index]
        try:
            return Record(image.read(), image.label)
        except BadImage as error:
            raise BadRecord(str(error)) from error

    def name(self, index: int) -> str:
        """How to speak of one of them: by its path."""
        return f"image {index}, {self._images[index]},"

    def labels(self) -> Int32[np.ndarray, " n"]:
        """Of all images, none of which is read for it."""
        return np.array([image.label for image in self._images], np.int32)


class Subset:
    """Some records of a split, as `Records`; they keep their names."""

    def __init__(self, records: Records | Files, indices: Int[np.ndarray, " n"]):
        self.remedy = records.remedy
        # Which are chosen follows from their number and the whole (`held_out_indices`).
        self.fingerprint = records.fingerprint
        self._records, self._indices = records, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Record:
        """One of them. Raises `BadRecord` if it cannot be read."""
        return self._records[int(self._indices[index])]

    def name(self, index: int) -> str:
        """How to speak of one of them."""
        return self._records.name(int(self._indices[index]))


@contextlib.contextmanager
def _one_error() -> Iterator[None]:
    """Whatever is wrong with a record is a `BadRecord`."""
    try:
        yield
    # RuntimeError: from the reader in C++, of a file that is missing, cut off or changed.
    except (DecodeError, IndexError, RuntimeError) as error:
        raise BadRecord(one_line(error)) from error


def _parse(record: bytes) -> Record:
    feature = tf_example_pb2.Example.FromString(record).features.feature
    return Record(feature["image"].bytes_list.value[0], feature["label"].int64_list.value[0])
