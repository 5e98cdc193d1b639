"""Random access to the records of a split: encoded images and their labels."""

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

_LABELS_AT_ONCE = 1000  # records; about 40 MB of photographs


class Record(NamedTuple):
    """An encoded image and its label.

    Attributes:
      image: the encoded image, as stored.
      label: index of its class.
    """

    image: bytes
    label: int


class BadRecord(ValueError):
    """One of the requested records cannot be read; the message is the reason, in one line."""


class Records:
    """One split of a prepared data set. It can be pickled, to be read in worker processes.

    Attributes:
      where: location of the records, for error messages.
      remedy: advice for error messages about a record that cannot be read.
      fingerprint: name, configuration and version of the data set.
    """

    def __init__(self, builder: tfds.core.DatasetBuilder, split: str):
        self.where = f"of {split!r} in {builder.data_dir}"
        self.remedy = start_again(builder.data_dir)
        self.fingerprint = builder.info.full_name
        source = builder.as_data_source(split, file_format="array_record")
        self._reader = source.data_source  # the file reader; TFDS's source pickles the builder too

    def __len__(self) -> int:
        return len(self._reader)

    def __getitem__(self, index: int) -> Record:
        """The record at an index. Raises `BadRecord` if it cannot be read."""
        with _as_bad_record():
            return _parse(self._reader[index])

    def read(self, indices: Sequence[int]) -> list[Record]:
        """The records at several indices, by one call of the reader.

        Takes half the time of one call per record but more CPU time: the reader uses threads.

        Raises:
          BadRecord: one of them cannot be read.
        """
        with _as_bad_record():
            # Parsing with protobuf directly is 1.5 times as fast as with TFDS.
            return [_parse(record) for record in self._reader.__getitems__(indices)]

    def name(self, index: int) -> str:
        """The name of a record, for error messages."""
        return f"record {index} {self.where}"

    def labels(self) -> Int32[np.ndarray, " n"]:
        """The labels of all records `[n]`, -1 where one cannot be read. Reads the whole split."""
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
    """One split of a folder of class folders, with the interface of `Records`."""

    remedy = (
        "restore that file as it was; if it is changed or removed, a run that has begun must start "
        "anew, in another workdir or with --restart"
    )

    def __init__(self, source: FolderSource):
        self._images = source.images

    def __len__(self) -> int:
        return len(self._images)

    @property
    def fingerprint(self) -> str:
        """A checksum of the classes, names and sizes of all files; not of the folder's path."""
        listed = ((image.label, image.name, image.size) for image in self._images)
        return f"{zlib.crc32(repr(list(listed)).encode()):08x}"

    def __getitem__(self, index: int) -> Record:
        """The image at an index. Raises `BadRecord` if it cannot be read."""
        image = self._images[index]
        try:
            return Record(image.read(), image.label)
        except BadImage as error:
            raise BadRecord(str(error)) from error

    def name(self, index: int) -> str:
        """The name of an image, with its path, for error messages."""
        return f"image {index}, {self._images[index]},"

    def labels(self) -> Int32[np.ndarray, " n"]:
        """The labels of all images `[n]`; no image is read."""
        return np.array([image.label for image in self._images], np.int32)


class Subset:
    """A subset of the records of a split, with the interface of `Records`."""

    def __init__(self, records: Records | Files, indices: Int[np.ndarray, " n"]):
        self.remedy = records.remedy
        # The subset is determined by its size and the whole split (`held_out_indices`).
        self.fingerprint = records.fingerprint
        self._records, self._indices = records, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Record:
        """The record at an index of the subset. Raises `BadRecord` if it cannot be read."""
        return self._records[int(self._indices[index])]

    def name(self, index: int) -> str:
        """The name of a record in the whole split, for error messages."""
        return self._records.name(int(self._indices[index]))


@contextlib.contextmanager
def _as_bad_record() -> Iterator[None]:
    """Converts the errors of reading and parsing a record to `BadRecord`."""
    try:
        yield
    # RuntimeError: from the C++ reader, if a file is missing, truncated or changed.
    except (DecodeError, IndexError, RuntimeError) as error:
        raise BadRecord(one_line(error)) from error


def _parse(record: bytes) -> Record:
    feature = tf_example_pb2.Example.FromString(record).features.feature
    return Record(feature["image"].bytes_list.value[0], feature["label"].int64_list.value[0])
