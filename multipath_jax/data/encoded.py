"""A split whose images stay encoded and are decoded and rescaled when a batch is loaded."""

import dataclasses
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, Int32, UInt8

from multipath_jax.data.images import BadImage, decode_into
from multipath_jax.data.records import BadRecord, Record
from multipath_jax.errors import UserError


@runtime_checkable
class Source(Protocol):
    """Random access to encoded images and labels; implemented by `records.Records`.

    Attributes:
      remedy: advice for error messages about a record that cannot be read.
      fingerprint: differs between sources of different images or labels.
    """

    remedy: str
    fingerprint: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record:
        """The record at an index. Raises `BadRecord` if it cannot be read."""

    def name(self, index: int) -> str:
        """The name of a record, for error messages."""


class Decoded(NamedTuple):
    """A batch of decoded examples.

    Attributes:
      images: ``[b size size 3]``.
      labels: ``[b]``.
    """

    images: UInt8[np.ndarray, "b h w c"]
    labels: Int32[np.ndarray, " b"]


@dataclasses.dataclass(frozen=True)
class EncodedSplit:
    """One split whose images stay encoded.

    Attributes:
      records: the encoded images and their labels.
      size: height and width in pixels to which images are rescaled.
      num_classes: number of classes; labels are from 0 to `num_classes - 1`.
    """

    records: Source
    size: int
    num_classes: int

    def __len__(self) -> int:
        return len(self.records)

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the records."""
        return self.records.fingerprint

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        return self.size, self.size, 3

    @property
    def dtype(self) -> np.dtype:
        """Type of the decoded pixels."""
        return np.dtype(np.uint8)

    def load(
        self,
        indices: Int[np.ndarray, " b"],
        into: UInt8[np.ndarray, "b h w 3"] | None = None,
    ) -> Decoded:
        """Reads and decodes examples.

        Args:
          indices: `[b]`; an index past the end gives zeros, as padding of a batch.
          into: memory for the images; None allocates it.

        Returns:
          The examples, in the order of the indices.

        Raises:
          UserError: a record cannot be read; the message names it.
        """
        images = np.empty((len(indices), *self.image_shape), np.uint8) if into is None else into
        labels = np.zeros(len(indices), np.int32)
        for row, index in enumerate(indices.tolist()):
            if index < len(self):
                labels[row] = self._example(index, images[row])
            else:
                images[row] = 0
        return Decoded(images, labels)

    def _example(self, index: int, into: np.ndarray) -> int:
        """Decodes the pixels and returns the label. Raises UserError."""
        try:
            return self._decoded(index, into)
        except (BadRecord, BadImage) as error:
            raise unreadable(self.records.name(index), error, self.records.remedy) from error

    def _decoded(self, index: int, into: np.ndarray) -> int:
        """Decodes the pixels and returns the label. Raises BadRecord or BadImage."""
        encoded, label = self.records[index]
        if not 0 <= label < self.num_classes:
            raise BadRecord(f"its label {label} is not one of 0 to {self.num_classes - 1}")
        decode_into(encoded, into)
        return label


def unreadable(which: str, reason: object, remedy: str) -> UserError:
    """The error for one or several records that cannot be read."""
    return UserError(f"{which} cannot be read ({reason}); {remedy}")
