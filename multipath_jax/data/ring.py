"""A ring buffer in shared memory, in which worker processes pass decoded images to a run."""

import math
import os
import shutil
import time
from multiprocessing.shared_memory import SharedMemory

import numpy as np
from jaxtyping import Int, UInt8

from multipath_jax.errors import UserError

_HEADER = 64  # bytes before the first block: the count of batches taken, and padding
_ENDED = 2**62  # a count that makes every block free, so that no worker waits
_FOLDER = "/dev/shm"  # shared memory on Linux
_POLL_INTERVAL = 0.001  # seconds


class Ring:
    """A ring buffer of batches: block ``k mod blocks`` is for batch k.

    Batches are taken in order, so one count determines which blocks are free. Grain would allocate
    shared memory for every batch, which takes nearly half as long as decoding its JPEGs, mostly to
    map and clear pages; here the memory is reused.

    The main process creates and closes the ring; pickling it gives access in another process.
    """

    def __init__(self, shape: tuple[int, ...], blocks: int, name: str | None = None):
        """Allocates the memory, or opens it if it has a name.

        Args:
          shape: shape of a block, of uint8.
          blocks: number of blocks.
          name: name of existing shared memory.

        Raises:
          UserError: there is not enough shared memory.
        """
        self._shape, self._blocks = shape, blocks
        size = _HEADER + blocks * math.prod(shape)
        if name is None:
            _check_room(size)
        self._memory = SharedMemory(name, create=name is None, size=size)

    def __reduce__(self) -> tuple:
        return Ring, (self._shape, self._blocks, self._memory.name)

    def free(self, number: int) -> UInt8[np.ndarray, "..."]:
        """Waits until the block of batch ``number`` is free, and returns it."""
        while number - self._count() >= self._blocks:
            time.sleep(_POLL_INTERVAL)
        return self._block(number)

    def take(self, number: int) -> UInt8[np.ndarray, "..."]:
        """Copies batch ``number`` and frees its block."""
        images = self._block(number).copy()
        self._count()[...] = number + 1
        return images

    def end(self) -> None:
        """Frees all blocks, so that waiting workers return and can be ended."""
        self._count()[...] = _ENDED

    def close(self) -> None:
        """Releases the memory, which is deleted when the workers have ended too."""
        self._memory.close()
        self._memory.unlink()

    # Arrays are created on every access: shared memory cannot be closed while one refers to it.

    def _count(self) -> Int[np.ndarray, ""]:
        return np.ndarray((), np.int64, self._memory.buf)

    def _block(self, number: int) -> UInt8[np.ndarray, "..."]:
        offset = _HEADER + number % self._blocks * math.prod(self._shape)
        return np.ndarray(self._shape, np.uint8, self._memory.buf, offset)


def _check_room(size: int) -> None:
    """Raises UserError if there is not enough space: writing would kill the process (SIGBUS)."""
    free = shutil.disk_usage(_FOLDER).free if os.path.isdir(_FOLDER) else size
    if free < size:
        raise UserError(
            f"the decoding workers need {size / 1e6:,.0f} MB of shared memory, but "
            f"{_FOLDER} has {free / 1e6:,.0f} MB free; use fewer workers or a smaller "
            "batch, or increase it (docker run --shm-size)"
        )
