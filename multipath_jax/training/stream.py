"""Steps over data that stay in the host's memory, for sets that no device has room for."""

import time
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Array, PyTree

from multipath_jax.data import Split
from multipath_jax.training.cost import Cost, flops, peak_bytes
from multipath_jax.training.step import Batch


class StreamRunner:
    """As `step.Runner`, each batch cut by the host and sent while the device is busy.

    The order is the same and so are the numbers: a run may change from one to the other. Of
    several processes, each sends its own part of a batch.
    """

    loop = False  # a dispatch is one step

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

    def compile(self, carries: tuple, data: Split, orders: tuple) -> Cost | None:
        """Compiles for arguments like these, without running; None if that was done before."""
        if self.compiled:
            return None
        self.compiled = True
        begun = time.perf_counter()
        lowered = self._function.lower(carries, self._cut(data, [*map(np.asarray, orders)], 0))
        self._function = lowered.compile()
        return Cost(time.perf_counter() - begun, flops(lowered), peak_bytes(self._function))

    def __call__(self, carries: tuple, data: Split, orders: tuple, count: int) -> tuple:
        """The carries after ``count`` more steps of one epoch."""
        first = int(carries[0].state.step) % self._per_epoch
        on_host = [np.asarray(order) for order in orders]
        for index in range(first, first + count):
            # Returns before the step is done: the next batch is cut and sent meanwhile.
            carries = self._function(carries, self._cut(data, on_host, index))
        return carries

    def _cut(self, data: Split, orders: list[np.ndarray], index: int) -> tuple[Batch, ...]:
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
