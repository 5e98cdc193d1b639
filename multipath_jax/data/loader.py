"""Batches of a split that stays encoded, decoded ahead of their use by other processes (Grain).

Which examples a batch is made of depends on its number and on the seed alone: not on the number of
processes that decode, nor on that of the processes that train. So a run goes on from any step at
once, by asking for the batches from there on.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial

import grain
import numpy as np
from absl import flags
from grain.multiprocessing import SharedMemoryArray
from jaxtyping import Int

from multipath_jax.data.encoded import Decoded, EncodedSplit
from multipath_jax.errors import UserError

_BATCHES_WAITING = 1  # of each worker, besides the one that it is about to hand over


@contextmanager
def training_batches(
    split: EncodedSplit,
    seed: int,
    batch_size: int,
    workers: int,
    first: int = 0,
    rows: Int[np.ndarray, " r"] | None = None,
) -> Iterator[Iterator[Decoded]]:
    """Endless batches, each epoch a permutation of its own less the last, partial batch.

    A context, since the workers end with it.

    Args:
      seed: of all permutations, from 0 to 2^32 - 1.
      batch_size: over all processes of the run.
      workers: processes that decode; with 0, a thread of this one.
      first: the number of the first batch, counted over all epochs.
      rows: which examples of every batch this process wants; None is all.
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
    """The whole split once, in its own order; zeros fill up the last batch.

    For the arguments, see `training_batches`.
    """
    indices = grain.MapDataset.range(len(split) + -len(split) % batch_size)
    with _decoded(split, indices.batch(batch_size), workers, rows) as batches:
        yield batches


@contextmanager
def _decoded(
    split: EncodedSplit,
    batches: grain.MapDataset,
    workers: int,
    rows: Int[np.ndarray, " r"] | None,
) -> Iterator[Iterator[Decoded]]:
    """The examples of batches of indices."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain asks for flags of its own, also where there are none
    load = partial(_load, split, rows, workers > 0)
    # A worker decodes one batch at a time; a thread of this process decodes ahead as well.
    reading = grain.ReadOptions(num_threads=int(not workers), prefetch_buffer_size=_BATCHES_WAITING)
    waiting = grain.MultiprocessingOptions(workers, per_worker_buffer_size=_BATCHES_WAITING)
    decoded = batches.map(load).to_iter_dataset(reading)
    with closing(iter(decoded.mp_prefetch(waiting, worker_init_fn=_begin_worker))) as iterator:
        yield _surviving(iterator)


def _load(
    split: EncodedSplit,
    rows: Int[np.ndarray, " r"] | None,
    shared: bool,
    indices: Int[np.ndarray, " b"],
) -> Decoded:
    """One batch; ``shared``: in memory that the run shares, which saves copying it there."""
    chosen = indices if rows is None else indices[rows]
    if not shared:
        return split.load(chosen)
    images = SharedMemoryArray((len(chosen), *split.image_shape), np.uint8)
    try:
        return split.load(chosen, images)
    except Exception:
        images.unlink_on_del()  # nobody else will
        raise


def _surviving(iterator: Iterator[Decoded]) -> Iterator[Decoded]:
    """The same; raises UserError where a worker has died, as of too little memory."""
    while True:
        try:
            decoded = next(iterator)
        except StopIteration:
            return
        except RuntimeError as error:
            if "Worker process was terminated" not in str(error):
                raise
            raise UserError(
                "a process that decodes images was killed, most likely for want of memory; "
                "use fewer dataset.workers or a smaller batch_size"
            ) from error
        yield decoded


def _begin_worker(index: int, count: int) -> None:
    """Signals are for the run, which then ends its workers; and no worker outlives it."""
    del index, count
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A run that was killed could not tell its workers to end."""
    multiprocessing.parent_process().join()
    os._exit(1)
