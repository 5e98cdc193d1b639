"""Batches of an encoded split, decoded ahead of their use by worker processes (Grain).

The examples of a batch depend only on its number and on the seed, not on the number of workers or
of training processes. A run that resumes asks for the batches from its step on.
"""

import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import NamedTuple

import grain
import numpy as np
from absl import flags
from jaxtyping import Int

from multipath_jax.data.encoded import Decoded, EncodedSplit
from multipath_jax.data.ring import Ring
from multipath_jax.errors import UserError
from multipath_jax.utils.spawning import GUARD, check_guard

_BATCHES_WAITING = 1  # decoded batches that each worker buffers
# Blocks per worker: for the batch that it decodes, the buffered one, and the one that a thread of
# Grain has fetched; and one more, so that no worker waits for a block while a batch is copied.
_BLOCKS = 4


@contextmanager
def training_batches(
    split: EncodedSplit,
    seed: int,
    batch_size: int,
    workers: int,
    first: int = 0,
    rows: Int[np.ndarray, " r"] | None = None,
) -> Iterator[Iterator[Decoded]]:
    """Context manager: training batches without end, shuffled anew in each epoch.

    The last, partial batch of each epoch is dropped. The workers end with the context.

    Args:
      split: the split to read.
      seed: seed of the permutations of all epochs, from 0 to 2^32 - 1.
      batch_size: over all processes of the run.
      workers: number of decoding processes; 0: a thread of this process.
      first: number of the first batch, counted over all epochs from zero.
      rows: the examples of every batch that this process loads, `[r]`; None is all.

    Yields:
      An iterator over batches of r examples.
    """
    whole = len(split) - len(split) % batch_size
    indices = grain.MapDataset.range(len(split)).shuffle(seed=seed)[:whole].repeat()
    with _decoded(split, indices.batch(batch_size)[first:], workers, rows) as batches:
        yield batches


@contextmanager
def evaluation_batches(
    split: EncodedSplit,
    batch_size: int,
    workers: int,
    rows: Int[np.ndarray, " r"] | None = None,
) -> Iterator[Iterator[Decoded]]:
    """Context manager: the whole split once, in order; the last batch is padded with zeros.

    The arguments are those of `training_batches`.
    """
    indices = grain.MapDataset.range(len(split) + -len(split) % batch_size)
    with _decoded(split, indices.batch(batch_size), workers, rows) as batches:
        yield batches


class _Ready(NamedTuple):
    """A batch whose images are in the ring.

    Attributes:
      number: number of the batch.
      labels: int32 labels as bytes, which Grain sends without conversion.
    """

    number: int
    labels: bytes


@contextmanager
def _decoded(
    split: EncodedSplit,
    batches: grain.MapDataset,
    workers: int,
    rows: Int[np.ndarray, " r"] | None,
) -> Iterator[Iterator[Decoded]]:
    """Context manager: decodes batches of indices into examples."""
    if rows is not None:
        batches = batches.map(partial(_chosen, rows))
    decode = _in_workers if workers else _in_a_thread
    with decode(split, batches, workers) as decoded:
        yield decoded


def _chosen(rows: Int[np.ndarray, " r"], indices: Int[np.ndarray, " b"]) -> np.ndarray:
    return indices[rows]


@contextmanager
def _in_a_thread(
    split: EncodedSplit, batches: grain.MapDataset, workers: int
) -> Iterator[Iterator[Decoded]]:
    del workers
    reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=_BATCHES_WAITING)
    with closing(iter(batches.map(split.load).to_iter_dataset(reading))) as decoded:
        yield decoded


@contextmanager
def _in_workers(
    split: EncodedSplit, batches: grain.MapDataset, workers: int
) -> Iterator[Iterator[Decoded]]:
    check_guard()
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain reads absl flags, which a library user has not parsed
    reading = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)  # a batch at a time
    waiting = grain.MultiprocessingOptions(workers, per_worker_buffer_size=_BATCHES_WAITING)
    shape = (len(batches[0]), *split.image_shape)
    with closing(Ring(shape, _BLOCKS * workers)) as ring:
        ready = batches.map_with_index(partial(_load, split, ring)).to_iter_dataset(reading)
        ready = ready.mp_prefetch(waiting, worker_init_fn=_begin_worker)
        with closing(iter(ready)) as iterator:
            try:
                yield (
                    Decoded(ring.take(number), np.frombuffer(labels, np.int32))
                    for number, labels in _surviving(iterator)
                )
            finally:
                ring.end()


def _load(split: EncodedSplit, ring: Ring, number: int, indices: Int[np.ndarray, " b"]) -> _Ready:
    """Decodes a batch into the ring; runs in a worker."""
    _, labels = split.load(indices, ring.free(number))
    return _Ready(number, labels.tobytes())


def _surviving(iterator: Iterator[_Ready]) -> Iterator[_Ready]:
    """Passes batches on; raises UserError if a worker was killed or has failed."""
    while True:
        try:
            ready = next(iterator)
        except StopIteration:
            return
        except RuntimeError as error:
            ended = re.search(r"Worker process was terminated .* exit code (-?\d+)", str(error))
            if not ended:
                raise
            raise UserError(_failure(int(ended[1]))) from error
        yield ready


def _failure(status: int) -> str:
    """The message about a worker that has ended with an exit status."""
    if status == -signal.SIGKILL:
        return (
            "a process that decodes images was killed, most likely for lack of memory; "
            "use fewer workers or a smaller batch_size"
        )
    return (
        f"a process that decodes images failed, with exit status {status} (see above); a script "
        f"must do its work under {GUARD}, or use dataset.workers=0"
    )


def _begin_worker(index: int, count: int) -> None:
    """Ignores signals, which the main process handles, and ends the worker with its parent."""
    del index, count
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this worker when its parent ends, even if the parent is killed."""
    multiprocessing.parent_process().join()
    os._exit(1)
