"""Sources of training batches: device memory, host memory, or encoded files.

`Resident` and `Streamed` give the same batches for the same key, so a run can switch between them.
All sources can start at any step, to resume a run.
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
    place,
)
from multipath_jax.data.encoded import Decoded
from multipath_jax.parallel.devices import from_rows, own_rows, replicated, split_batch
from multipath_jax.training.state import ORDER, stream
from multipath_jax.training.step import Batch

AHEAD = 2  # number of batches that are transferred to the devices ahead of their use


@runtime_checkable
class Source(Protocol):
    """A source of training batches.

    Attributes:
      steps_per_epoch: number of whole batches per epoch.
      same_all_epoch: whether `batches` yields the same arrays for all steps of an epoch, so that
        many steps can be one dispatch.
    """

    steps_per_epoch: int
    same_all_epoch: bool

    def batches(self, rng: UInt32[Array, "..."], epoch: int, first_step: int) -> Iterator[PyTree]:
        """Yields the inputs of the compiled step, for all steps to the end of an epoch.

        Args:
          rng: raw data of the run's key.
          epoch: number of the epoch, from zero.
          first_step: first step within the epoch, from zero.
        """

    def batch(self, given: PyTree, step: int | Int[Array, ""]) -> Batch:
        """The batch of a step, computed inside the compiled step.

        Args:
          given: an item of `batches`.
          step: number of the step, counted over all epochs.
        """

    def like(self) -> PyTree:
        """The shapes of an item of `batches`, for compilation."""

    def close(self) -> None:
        """Ends worker processes, if there are any."""


class Resident:
    """A split that is replicated in the memory of all devices; batches are gathered in the step."""

    same_all_epoch = True

    def __init__(self, split: Split, batch_size: int, mesh: Mesh):
        self._split, self._size = split, batch_size
        self._everywhere, self._where = replicated(mesh), split_batch(mesh)
        self.steps_per_epoch = batches_per_epoch(len(split), batch_size)
        self._order = _Orders(split, batch_size, self._everywhere)

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
    """Base of sources that transfer batches to the devices one by one."""

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
    """A split in host memory, for data sets that exceed the memory of a device.

    Each batch is transferred while the devices compute the previous step. Each process transfers
    its own part of a batch.
    """

    def __init__(self, split: Split, batch_size: int, mesh: Mesh):
        super().__init__(split, batch_size, mesh)
        self._order = _Orders(split, batch_size, self._everywhere)

    def batches(self, rng: UInt32[Array, "..."], epoch: int, first_step: int) -> Iterator[Batch]:
        order = np.asarray(self._order(rng, epoch))
        for index in range(first_step, self.steps_per_epoch):
            chosen = order[index * self._size : (index + 1) * self._size]
            yield Batch(
                self._send(self._split.images, chosen), self._send(self._split.labels, chosen)
            )

    def _send(self, array: np.ndarray, chosen: np.ndarray) -> Array:
        """Transfers the chosen examples; every process reads only its own part."""
        shape = (len(chosen), *array.shape[1:])
        return jax.make_array_from_callback(shape, self._where, lambda part: array[chosen[part[0]]])


class Encoded(_FromHost):
    """An encoded split; worker processes decode batches, which are transferred ahead of use."""

    def __init__(self, split: EncodedSplit, batch_size: int, mesh: Mesh, workers: int):
        """Prepares the source; processes start with the first batch.

        Args:
          split: the split.
          batch_size: over all devices.
          mesh: the devices.
          workers: number of decoding processes; 0: a thread of this process.
        """
        super().__init__(split, batch_size, mesh)
        self._workers, self._rows = workers, own_rows(self._where, batch_size)
        self._opened = contextlib.ExitStack()  # the context of the loader
        self._loader: Iterator[Decoded] = iter(())
        self._ahead: deque[Batch] = deque()
        self._position: tuple[int, int] | None = None  # seed and step of the next batch

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
        """Starts to decode batches from a step on."""
        from multipath_jax.data.loader import training_batches  # importing Grain takes 0.3 s

        self.close()
        loader = training_batches(self._split, seed, self._size, self._workers, step, self._rows)
        self._loader = self._opened.enter_context(loader)

    def _receive(self) -> Batch:
        """Starts the transfer of the next batch."""
        decoded = next(self._loader)
        arrays = (decoded.images, decoded.labels)
        sent = (from_rows(array, self._rows, self._size, self._where) for array in arrays)
        return Batch(*sent)

    def close(self) -> None:
        """Ends the worker processes; the next batch starts new ones."""
        self._position = None
        self._ahead.clear()
        self._opened.close()


class _Orders:
    """Computes the order of the examples in an epoch, int32 ``[n]``, and caches the last one."""

    def __init__(self, split: Split, batch_size: int, where: jax.sharding.Sharding):
        def draw(rng: UInt32[Array, "..."], epoch: Int[Array, ""]) -> Array:
            return split.order(stream(rng, ORDER), epoch, batch_size)

        self._draw = jax.jit(draw, out_shardings=where)
        self._last: tuple[tuple, Array] | None = None

    def __call__(self, rng: UInt32[Array, "..."], epoch: int) -> Array:
        which = (np.asarray(rng).tobytes(), epoch)
        if self._last is None or self._last[0] != which:
            self._last = (which, self._draw(rng, epoch))
        return self._last[1]


@jax.jit
def _seed(rng: UInt32[Array, "..."]) -> UInt32[Array, ""]:
    """The seed of the order of all epochs, for a loader that shuffles by itself."""
    return jax.random.bits(stream(rng, ORDER), dtype=jnp.uint32)
