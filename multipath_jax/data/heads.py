"""The heads of a network for several data sets: each has its own classes and logits."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Int32


@dataclasses.dataclass(frozen=True)
class Heads:
    """The heads of a network, one for each data set.

    The classes of all data sets are numbered consecutively: a head is a range of columns of the
    last dense layer, and a label determines the data set of its image.

    Attributes:
      names: names of the data sets.
      sizes: numbers of their classes.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]

    def columns(self, number: int) -> slice:
        """The range of the classes of a data set."""
        start = sum(self.sizes[:number])
        return slice(start, start + self.sizes[number])

    def numbers(self, labels: Int[Array | np.ndarray, " b"]) -> Int32[Array, " b"]:
        """The numbers of the data sets of images with these labels: ``[b] -> [b]``."""
        return jnp.asarray(self._numbers)[labels]

    def own(self, labels: Int[Array | np.ndarray, " b"]) -> Bool[Array, "b classes"]:
        """Whether a class is in the head of a label: ``[b] -> [b classes]``."""
        return self._numbers[None] == self.numbers(labels)[:, None]

    @property
    def _numbers(self) -> Int32[np.ndarray, " classes"]:
        """The number of the data set of every class."""
        return np.repeat(np.arange(len(self.sizes), dtype=np.int32), self.sizes)


def heads_of(parts: Sequence[Any]) -> Heads | None:
    """The heads for these data sets, or for descriptions of them; None if there are none."""
    names, sizes = (tuple(getattr(part, key) for part in parts) for key in ("name", "num_classes"))
    return Heads(names, sizes) if parts else None
