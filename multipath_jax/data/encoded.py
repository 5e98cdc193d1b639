"""A split that stays encoded: images of any size are decoded and rescaled when they are wanted."""

import dataclasses
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, Int32, UInt8

from multipath_jax.data.images import BadImage, decode_into
from multipath_jax.data.records import BadRecord, Record
from multipath_jax.errors import UserError


@runtime_checkable
class Source(Protocol):
    """Encoded images and labels, read at random: `records.Records`, for one.

    Attributes:
      remedy: what to do where a record cannot be read.
      fingerprint: differs between sources of other images or labels.
    """

    remedy: str
    fingerprint: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record:
        """Raises `BadRecord`."""

    def name(self, index: int) -> str:
        """How to speak of a record."""


class Decoded(NamedTuple):
    """Some examples.

    Attributes:
      images: ``[b size size 3]``.
      labels: ``[b]``.
    """

    images: UInt8[np.ndarray, "b h w c"]
    labels: Int32[np.ndarray, " b"]


@dataclasses.dataclass(frozen=True)
class EncodedSplit:
    """One split as it lies on the disk.

    Attributes:
      records: the encoded images and their labels.
      size: the side in pixels to which images of another size are rescaled.
      num_classes: labels are from 0 to one less.
    """

    records: Source
    size: int
    num_classes: int

    def __len__(self) -> int:
        return len(self.records)

    @property
    def fingerprint(self) -> str:
        """That of the records."""
        return self.records.fingerprint

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        return self.size, self.size, 3

    @property
    def dtype(self) -> np.dtype:
        """Of the pixels, once decoded."""
        return np.dtype(np.uint8)

    def load(
        self,
        indices: Int[np.ndarray, " b"],
        into: UInt8[np.ndarray, "b h w 3"] | None = None,
    ) -> Decoded:
        """The examples with these indices; those past the end, which fill up a batch, are zeros.

        Args:
          into: where the images go; None is new memory.

        Raises:
          UserError: a record cannot be read; names it.
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
        """Decodes the pixels; gives the label. Raises UserError."""
        try:
            return self._decoded(index, into)
        except (BadRecord, BadImage) as error:
            raise unreadable(self.records.name(index), error, self.records.remedy) from error

    def _decoded(self, index: int, into: np.ndarray) -> int:
        """Decodes the pixels; gives the label. Raises BadRecord or BadImage."""
        encoded, label = self.records[index]
        if not 0 <= label < self.num_classes:
            raise BadRecord(f"its label {label} is not one of 0 to {self.num_classes - 1}")
        decode_into(encoded, into)
        return label


def unreadable(which: str, reason: object, remedy: str) -> UserError:
    """What to tell the user of a record, or of several."""
    return UserError(f"{which} cannot be read ({reason}); {remedy}")
