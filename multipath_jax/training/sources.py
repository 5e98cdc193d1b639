"""Where the batches of training come from: the devices' memory, the host's, or encoded files.

Every source gives the same examples in the same order for the same key, so that a run may change
from one in memory to the other and resume at any step.
"""

import contextlib
import functools
import itertools
from collections import deque
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int, PyTree, UInt32

from multipath_jax.data import (
    EncodedSplit,
    Split,
    batch_at,
    batches_per_epoch,
    epoch_order,
    place,
)
from multipath_jax.data.encoded import Decoded
from multipath_jax.parallel.devices import from_rows, own_rows, replicated, split_batch
from multipath_jax.training.state import ORDER, stream
from multipath_jax.training.step import Batch

AHEAD = 2  # batches that are on their way to the devices, besides the one in use


@runtime_checkable
class Source(Protocol):
    """The training split, batch by batch.

    Attributes:
      steps_per_epoch: whole batches in an epoch.
      same_all_epoch: whether `batches` gives the same arrays for all steps of an epoch, so that
        many steps may be one dispatch.
    """

    steps_per_epoch: int
    same_all_epoch: bool

    def batches(self, rng: UInt32[Array, "..."], epoch: int, first_step: int) -> Iterator[PyTree]:
        """What the program of a step is given, step after step to the end of the epoch.

        Args:
          rng: the raw data of the run's key.
          epoch: from zero.
          first_step: within the epoch, from zero.
        """

    def batch(self, given: PyTree, step: int | Int[Array, ""]) -> Batch:
        """The batch of a step (counted over all epochs) from what the program is given; traced."""

    def like(self) -> PyTree:
        """Shapes of what the program of a step is given, to compile for."""

    def close(self) -> None:
        """Ends what runs between two calls."""


class Resident:
    """A split in the memory of the devices, of which each has all: the step cuts its own batch."""

    same_all_epoch = True

    def __init__(self, split: Split, batch_size: int, mesh: Mesh):
        self._split, self._size = split, batch_size
        self._everywhere, self._where = replicated(mesh), split_batch(mesh)
        self.steps_per_epoch = batches_per_epoch(len(split), batch_size)
        self._order = _Orders(len(split), self._everywhere)

    @functools.cached_property
    def _data(self) -> Any:
        return place(self._split, self._everywhere)

    def batches(self, rng: UInt32[Array, "..."], epoch: int, first_step: int) -> Iterator[PyTree]:
        given = self._data, self._order(rng, epoch)
        return itertools.repeat(given, self.steps_per_epoch - first_step)

    def batch(self, given: PyTree, step: int | Int[Array, ""]) -> Batch:
        data, order = given
        found = Batch(*batch_at(data, order, step % self.steps_per_epoch, self._size))
        return jax.lax.with_sharding_constraint(found, self._where)

    def like(self) -> PyTree:
        shape = (len(self._split),)
        return self._data, jax.ShapeDtypeStruct(shape, jnp.int32, sharding=self._everywhere)

    def close(self) -> None:
        pass


class _FromHost:
    """What sources share whose batches are sent to the devices one by one."""

    same_all_epoch = False

    def __init__(self, split: Split | EncodedSplit, batch_size: int, mesh: Mesh):
        self._split, self._size = split, batch_size
        self._everywhere, self._where = replicated(mesh), split_batch(mesh)
        self.steps_per_epoch = batches_per_epoch(len(split), batch_size)

    def batch(self, given: Batch, step: int | Int[Array, ""]) -> Batch:
        return given

    def like(self) -> Batch:
        shapes = (
            ((self._size, *self._split.image_shape), self._split.dtype),
            ((self._size,), np.int32),
        )
        return Batch(*(jax.ShapeDtypeStruct(*one, sharding=self._where) for one in shapes))

    def close(self) -> None:
        pass


class Streamed(_FromHost):
    """A split in the memory of the host, for sets that no device has room for.

    Each batch is sent while the device is busy with the one before. Of several processes, each
    sends its own part.
    """

    def __init__(self, split: Split, batch_size: int, mesh: Mesh):
        super().__init__(split, batch_size, mesh)
        self._order = _Orders(len(split), self._everywhere)

    def batches(self, rng: UInt32[Array, "..."], epoch: int, first_step: int) -> Iterator[Batch]:
        order = np.asarray(self._order(rng, epoch))
        for index in range(first_step, self.steps_per_epoch):
            chosen = order[index * self._size : (index + 1) * self._size]
            yield Batch(
                self._send(self._split.images, chosen), self._send(self._split.labels, chosen)
            )

    def _send(self, array: np.ndarray, chosen: np.ndarray) -> Array:
        """The chosen examples on the devices; every process reads only those of its own."""
        shape = (len(chosen), *array.shape[1:])
        return jax.make_array_from_callback(shape, self._where, lambda part: array[chosen[part[0]]])


class Encoded(_FromHost):
    """Pictures on the disk, which other processes decode and which are sent ahead."""

    def __init__(self, split: EncodedSplit, batch_size: int, mesh: Mesh, workers: int):
        """``workers``: processes that decode."""
        super().__init__(split, batch_size, mesh)
        self._workers, self._rows = workers, own_rows(self._where, batch_size)
        self._opened = contextlib.ExitStack()  # what the loader needs
        self._loader: Iterator[Decoded] = iter(())
        self._ahead: deque[Batch] = deque()
        self._position: tuple[int, int] | None = None  # of the next batch: the seed, and the step

    def batches(self, rng: UInt32[Array, "..."], epoch: int, first_step: int) -> Iterator[Batch]:
        seed = int(_seed(rng))
        for step in range(first_step, self.steps_per_epoch):
            yield self._next(seed, epoch * self.steps_per_epoch + step)

    def _next(self, seed: int, step: int) -> Batch:
        if self._position != (seed, step):
            self._open(seed, step)
        while len(self._ahead) <= AHEAD:
            self._ahead.append(self._receive())
        self._position = (seed, step + 1)
        return self._ahead.popleft()

    def _open(self, seed: int, step: int) -> None:
        """Starts to decode what follows from a step on."""
        from multipath_jax.data.loader import training_batches  # Grain: a third of a second

        self.close()
        loader = training_batches(self._split, seed, self._size, self._workers, step, self._rows)
        self._loader = self._opened.enter_context(loader)

    def _receive(self) -> Batch:
        """The next batch, on its way to the devices."""
        decoded = next(self._loader)
        arrays = (decoded.images, decoded.labels)
        sent = (from_rows(array, self._rows, self._size, self._where) for array in arrays)
        return Batch(*sent)

    def close(self) -> None:
        """Ends the processes that decode; another call starts new ones."""
        self._position = None
        self._ahead.clear()
        self._opened.close()


class _Orders:
    """The order of n examples in an epoch, int32 ``[n]``, drawn once an epoch."""

    def __init__(self, count: int, where: jax.sharding.Sharding):
        def draw(rng: UInt32[Array, "..."], epoch: Int[Array, ""]) -> Array:
            return epoch_order(stream(rng, ORDER), epoch, count)

        self._draw = jax.jit(draw, out_shardings=where)
        self._last: tuple[tuple, Array] | None = None

    def __call__(self, rng: UInt32[Array, "..."], epoch: int) -> Array:
        which = (np.asarray(rng).tobytes(), epoch)
        if self._last is None or self._last[0] != which:
            self._last = (which, self._draw(rng, epoch))
        return self._last[1]


@jax.jit
def _seed(rng: UInt32[Array, "..."]) -> UInt32[Array, ""]:
    """Of the orders of all epochs, for a loader that draws them itself."""
    return jax.random.bits(stream(rng, ORDER), dtype=jnp.uint32)
