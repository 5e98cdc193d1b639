"""A ring of blocks of shared memory, in which worker processes hand their images to a run."""

import math
import os
import shutil
import time
from multiprocessing.shared_memory import SharedMemory

import numpy as np
from jaxtyping import Int, UInt8

from multipath_jax.errors import UserError

_HEADER = 64  # bytes before the first block: the count of batches taken, and nothing
_ENDED = 2**62  # in its place: nobody has to wait for a block any more
_FOLDER = "/dev/shm"  # where Linux keeps shared memory
_PATIENCE = 0.001  # seconds between two looks at the count


class Ring:
    """Block ``k mod blocks`` holds batch k from when a worker fills it until the run takes it.

    Batches are taken in order, so one count says which blocks are free. New shared memory for every
    batch, which Grain would use, costs nearly half as much as decoding JPEGs of its size, most of
    it for pages that are mapped and cleared; here they stay.

    The run makes the ring and closes it; pickled, it is the same memory in another process.
    """

    def __init__(self, shape: tuple[int, ...], blocks: int, name: str | None = None):
        """``shape``: of a block, uint8; ``name``: of the memory, where it exists already.

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
        """The block for batch ``number``, once the run has taken what was there before."""
        while number - self._count() >= self._blocks:
            time.sleep(_PATIENCE)
        return self._block(number)

    def take(self, number: int) -> UInt8[np.ndarray, "..."]:
        """A copy of batch ``number``, whose block is free from now on."""
        images = self._block(number).copy()
        self._count()[...] = number + 1
        return images

    def end(self) -> None:
        """Lets no worker wait any longer, so that it can be told to end."""
        self._count()[...] = _ENDED

    def close(self) -> None:
        """The memory is gone when the workers have ended too."""
        self._memory.close()
        self._memory.unlink()

    # Views are made anew each time: memory that something refers to could not be closed.

    def _count(self) -> Int[np.ndarray, ""]:
        return np.ndarray((), np.int64, self._memory.buf)

    def _block(self, number: int) -> UInt8[np.ndarray, "..."]:
        offset = _HEADER + number % self._blocks * math.prod(self._shape)
        return np.ndarray(self._shape, np.uint8, self._memory.buf, offset)


def _check_room(size: int) -> None:
    """Raises UserError where writing that many bytes would kill a process."""
    free = shutil.disk_usage(_FOLDER).free if os.path.isdir(_FOLDER) else size
    if free < size:
        raise UserError(
            f"workers hand over images in shared memory, {size / 1e6:,.0f} MB for this batch, and "
            f"{_FOLDER} has {free / 1e6:,.0f} MB free; use fewer dataset.workers or a smaller "
            "batch, or give it more (docker run --shm-size)"
        )
