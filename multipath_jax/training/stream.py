"""Steps over data that come from the host, for sets that no device has room for."""

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Array, PyTree

from multipath_jax.data import EncodedSplit, Split
from multipath_jax.data.encoded import Decoded
from multipath_jax.training.cost import Cost, compiled
from multipath_jax.training.devices import from_rows, own_rows
from multipath_jax.training.step import Batch

AHEAD = 2  # batches that are on their way to the devices, besides the one in use


class StreamRunner:
    """As `step.Runner`, each batch cut by the host and sent while the device is busy.

    The order is the same and so are the numbers: a run may change from one to the other. Of
    several processes, each sends its own part of a batch.
    """

    loop = False  # a dispatch is one step
    replaced = 0  # as in `LoaderRunner`: data in memory are whole

    def __init__(
        self, step: Callable, sharding: PyTree, batches: Sharding, batch_size: int, per_epoch: int
    ):
        """Nothing is compiled yet.

        Args:
          step: ``(carries, batches) -> carries``, for tuples of as many runs as there are.
          sharding: of the carries.
          batches: how images and labels are split over the devices.
          per_epoch: steps in an epoch.
        """
        self._function = jax.jit(step, donate_argnums=0, out_shardings=sharding)
        self._where, self._size, self._per_epoch = batches, batch_size, per_epoch
        self.compiled = False

    def compile(self, carries: tuple, data: Split | EncodedSplit, orders: tuple) -> Cost | None:
        """Compiles for arguments like these, without running; None if that was done before."""
        if self.compiled:
            return None
        self.compiled = True
        shapes = Batch(
            jax.ShapeDtypeStruct((self._size, *data.image_shape), data.dtype, sharding=self._where),
            jax.ShapeDtypeStruct((self._size,), np.int32, sharding=self._where),
        )
        self._function, cost = compiled(self._function, carries, (shapes,) * len(carries))
        return cost

    def __call__(
        self, carries: tuple, data: Split | EncodedSplit, orders: tuple, count: int
    ) -> tuple:
        """The carries after ``count`` more steps of one epoch."""
        first = int(carries[0].state.step)
        on_host = tuple(map(np.asarray, orders))
        for step in range(first, first + count):
            # Returns before the step is done: the next batch is sent meanwhile.
            carries = self._function(carries, self._batches(data, on_host, step))
        return carries

    def _batches(self, data: Split, orders: tuple, step: int) -> tuple[Batch, ...]:
        """What every run takes this step with."""
        return self._cut(data, orders, step % self._per_epoch)

    def _cut(self, data: Split, orders: Sequence[np.ndarray], index: int) -> tuple[Batch, ...]:
        """The batch of every run."""
        rows = slice(index * self._size, (index + 1) * self._size)
        return tuple(
            Batch(*(self._send(array, order[rows]) for array in (data.images, data.labels)))
            for order in orders
        )

    def _send(self, array: np.ndarray, chosen: np.ndarray) -> Array:
        """The chosen examples on the devices; every process reads only those of its own."""
        shape = (len(chosen), *array.shape[1:])
        return jax.make_array_from_callback(shape, self._where, lambda part: array[chosen[part[0]]])

    def close(self) -> None:
        """Nothing runs between two calls."""


class LoaderRunner(StreamRunner):
    """As `StreamRunner`, of images that other processes decode and that are sent ahead.

    Attributes:
      replaced: pictures that stood in for ones that cannot be read, in all steps so far.
    """

    def __init__(
        self, step: Callable, sharding: PyTree, batches: Sharding, batch_size: int, workers: int
    ):
        """As `StreamRunner`; ``workers``: processes that decode, for each run."""
        super().__init__(step, sharding, batches, batch_size, per_epoch=1)
        self._workers, self._rows = workers, own_rows(batches, batch_size)
        self._opened = contextlib.ExitStack()  # what the loaders need
        self._loaders: list[Iterator[Decoded]] = []
        self._ahead: deque[tuple[tuple[Batch, ...], int]] = deque()
        self._position: tuple | None = None  # of the next batch: the runs' seeds, and the step

    def _batches(
        self, data: EncodedSplit, orders: tuple[np.ndarray, ...], step: int
    ) -> tuple[Batch, ...]:
        """What every run takes this step with; ``orders`` holds the seeds of their orders."""
        seeds = tuple(map(int, orders))
        if self._position != (seeds, step):
            self._open(data, seeds, step)
        while len(self._ahead) <= AHEAD:
            self._ahead.append(self._receive())
        batches, replaced = self._ahead.popleft()
        self._position = (seeds, step + 1)
        self.replaced += replaced
        return batches

    def _open(self, data: EncodedSplit, seeds: tuple[int, ...], step: int) -> None:
        """Starts to decode what follows from a step on."""
        from multipath_jax.data.loader import training_batches  # Grain: a third of a second

        self.close()
        self._loaders = [
            self._opened.enter_context(
                training_batches(data, seed, self._size, self._workers, step, self._rows)
            )
            for seed in seeds
        ]

    def _receive(self) -> tuple[tuple[Batch, ...], int]:
        """The next batch of every run, on its way to the devices; how many were replaced."""
        decoded = [next(loader) for loader in self._loaders]

        def send(array: np.ndarray) -> Array:
            return from_rows(array, self._rows, self._size, self._where)

        batches = tuple(Batch(send(one.images), send(one.labels)) for one in decoded)
        return batches, sum(one.replaced for one in decoded)

    def close(self) -> None:
        """Ends the processes that decode; another call starts new ones."""
        self._position = None
        self._ahead.clear()
        self._opened.close()
