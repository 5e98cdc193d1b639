"""Shards of a data set of rescaled images: what each is made of, and writing them on all cores.

They are ArrayRecord files of `tf.train.Example`s, just as TFDS writes them.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
import pathlib
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.synchronize import Event
from typing import Any, Literal, NamedTuple

import tensorflow_datasets as tfds
from tensorflow_datasets.core import example_serializer, file_adapters

from multipath_jax.data.files import ImageFile
from multipath_jax.data.images import BadImage, decode, encode, square
from multipath_jax.errors import UserError

SIDE = 256  # pixels
OnBad = Literal["stop", "skip"]  # at an image that cannot be read
# Draft decoding to no less than three times the result changes it by less than JPEG itself.
_DRAFT = 3 * SIDE


class Done(NamedTuple):
    """What is in a finished shard.

    Attributes:
      source: `Shard.source` of the files that it was made of.
      records: their number, less those left out.
      num_bytes: of all records.
      file_size: in bytes.
      left_out: the unreadable images, each with the reason.
    """

    source: str
    records: int
    num_bytes: int
    file_size: int
    left_out: list[list[str]]


@dataclasses.dataclass(frozen=True, eq=False)  # told apart by identity: a set stays cheap
class Shard:
    """One file of the data set, and what it is to be made of."""

    split: str
    path: pathlib.Path
    note: pathlib.Path
    class_names: tuple[str, ...]
    images: tuple[ImageFile, ...]

    @functools.cached_property
    def source(self) -> str:
        """Stands for the images and their classes: changes when any of them does."""
        digest = hashlib.blake2b(repr(self.class_names).encode(), digest_size=16)
        for image in self.images:
            digest.update(repr((image.label, image.name, image.size, image.modified)).encode())
        return digest.hexdigest()

    def done(self) -> Done | None:
        """What was noted when it was finished; None unless it is, and of these very images."""
        try:
            done = Done(**json.loads(self.note.read_text()))
            whole = self.path.stat().st_size == done.file_size
        except (OSError, TypeError, ValueError):
            return None
        return done if whole and done.source == self.source else None


def features() -> tfds.features.FeaturesDict:
    """Of one example; the class names are the builder's to set."""
    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(SIDE, SIDE, 3), encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(),
            "file_name": tfds.features.Text(),
        }
    )


def write(shards: Sequence[Shard], on_bad: OnBad, workers: int) -> Iterator[Shard]:
    """Writes shards in so many processes; yields each as it is finished.

    A shard comes into being at once, and after it its note: neither is ever there by half.

    Raises:
      UserError: an image cannot be read (with ``on_bad="stop"``), or a shard not be written.
    """
    if workers > 1:
        yield from _write_in_pool(shards, on_bad, workers)
        return
    for shard in shards:
        _write(shard, on_bad, lambda: False)
        yield shard


def _write_in_pool(shards: Sequence[Shard], on_bad: OnBad, workers: int) -> Iterator[Shard]:
    # Not forked: the threads of an imported JAX would not survive that.
    context = multiprocessing.get_context("spawn")
    stopping = context.Event()
    pool = concurrent.futures.ProcessPoolExecutor(workers, context, _start_worker, (stopping,))
    try:
        with _interrupts_held():
            futures = {pool.submit(_write_in_worker, shard, on_bad): shard for shard in shards}
        for future in concurrent.futures.as_completed(futures):
            future.result()
            yield futures[future]
    except concurrent.futures.BrokenExecutor as error:
        raise UserError(
            "a worker process was ended from outside, perhaps for want of memory; "
            "start the same command again, with fewer --workers if need be"
        ) from error
    finally:
        stopping.set()
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C waits, and processes begun meanwhile never get it: it is the parent's to deal with."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_stopping: Event  # in a worker: set when the preparation ends early


def _start_worker(stopping: Event) -> None:
    global _stopping
    _stopping = stopping
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed could not tell its workers to end."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _write_in_worker(shard: Shard, on_bad: OnBad) -> None:
    _write(shard, on_bad, _stopping.is_set)


def _write(shard: Shard, on_bad: OnBad, stopping: Callable[[], bool]) -> None:
    """Writes one shard and then its note, each under another name first."""
    left_out, sizes = [], []

    def records() -> Iterator[bytes]:
        for image, record in _records(shard, stopping):
            if isinstance(record, BadImage):
                if on_bad == "stop":
                    raise _unreadable(image, record)
                left_out.append([str(image), str(record)])
            else:
                sizes.append(len(record))
                yield record

    part = shard.path.with_name(f"{shard.path.name}.part")
    try:
        file_size = _write_records(part, records())
        os.replace(part, shard.path)
        done = Done(shard.source, len(sizes), sum(sizes), file_size, left_out)
        part = shard.note.with_name(f"{shard.note.name}.part")
        part.write_text(json.dumps(done._asdict()))
        os.replace(part, shard.note)
    except OSError as error:
        raise unwritable(shard.path, error) from error


def _records(
    shard: Shard, stopping: Callable[[], bool]
) -> Iterator[tuple[ImageFile, bytes | BadImage]]:
    """Each image as a serialized `tf.train.Example`, or why that cannot be."""
    made = features()
    made["label"].names = list(shard.class_names)
    serializer = example_serializer.ExampleSerializer(made.get_serialized_info())
    for image in shard.images:
        if stopping():
            raise concurrent.futures.CancelledError
        try:
            example = serializer.get_tf_example(made.encode_example(_example(image)))
        except BadImage as reason:
            yield image, reason
        else:
            # TFDS leaves the features' order to chance, which would be another in each process.
            yield image, example.SerializeToString(deterministic=True)


def _example(image: ImageFile) -> dict[str, Any]:
    pixels = square(decode(image.read(), draft=_DRAFT), SIDE)
    return {"image": encode(pixels), "label": image.label, "file_name": os.fsencode(image.name)}


def _write_records(path: pathlib.Path, records: Iterable[bytes]) -> int:
    """Writes an ArrayRecord file as TFDS does; gives its size. Raises `OSError`."""
    adapter = file_adapters.ADAPTER_FOR_FORMAT[file_adapters.FileFormat.ARRAY_RECORD]
    try:
        adapter.write_examples(path, ((None, record) for record in records))
    except RuntimeError as error:  # from the writer in C++
        raise OSError(" ".join(str(error).split())) from error
    with open(path, "rb") as file:
        os.fsync(file.fileno())  # so that a power cut leaves no note of a shard without content
    return path.stat().st_size


def _unreadable(image: ImageFile, reason: BadImage) -> UserError:
    return UserError(
        f"{image} cannot be read ({reason}); replace or remove it and start the same command "
        "again, or leave out such images with --on_bad=skip"
    )


def unwritable(path: pathlib.Path, error: OSError) -> UserError:
    """What to say of a file that cannot be written."""
    return UserError(
        f"{path} cannot be written ({error.strerror or error}); make room, or choose another data "
        "directory, and start the same command again"
    )
