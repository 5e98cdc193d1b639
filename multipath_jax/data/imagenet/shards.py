"""Shards of a data set of rescaled images, written in parallel.

They are ArrayRecord files of `tf.train.Example`s, in TFDS's format.
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
OnBad = Literal["stop", "skip"]  # what to do with an image that cannot be read
# Draft decoding to at least three times the final size changes pixels less than JPEG encoding does.
_DRAFT = 3 * SIDE


class Done(NamedTuple):
    """The content of a finished shard.

    Attributes:
      source: `Shard.source` of its source files.
      records: number of records.
      num_bytes: size of all records in bytes.
      file_size: size of the file in bytes.
      left_out: the skipped images, each with the reason.
    """

    source: str
    records: int
    num_bytes: int
    file_size: int
    left_out: list[list[str]]


@dataclasses.dataclass(frozen=True, eq=False)  # compared by identity, which is cheap in sets
class Shard:
    """One file of the data set.

    Attributes:
      split: name of its split.
      path: the file.
      note: the JSON file that is written when the shard is finished.
      class_names: names in the order of the labels.
      images: the images to write.
    """

    split: str
    path: pathlib.Path
    note: pathlib.Path
    class_names: tuple[str, ...]
    images: tuple[ImageFile, ...]

    @functools.cached_property
    def source(self) -> str:
        """A hash of the images' metadata and the class names."""
        digest = hashlib.blake2b(repr(self.class_names).encode(), digest_size=16)
        for image in self.images:
            digest.update(repr((image.label, image.name, image.size, image.modified)).encode())
        return digest.hexdigest()

    def done(self) -> Done | None:
        """Its content; None if it is not finished, or has other source files."""
        try:
            done = Done(**json.loads(self.note.read_text()))
            whole = self.path.stat().st_size == done.file_size
        except (OSError, TypeError, ValueError):
            return None
        return done if whole and done.source == self.source else None


def features() -> tfds.features.FeaturesDict:
    """The TFDS features of an example, without class names, which the builder sets."""
    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(SIDE, SIDE, 3), encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(),
            "file_name": tfds.features.Text(),
        }
    )


def write(shards: Sequence[Shard], on_bad: OnBad, workers: int) -> Iterator[Shard]:
    """Writes shards; each file, and then its note, is renamed into place when it is complete.

    Args:
      shards: the shards to write.
      on_bad: for an image that cannot be read: "stop" with an error, or "skip" it.
      workers: number of processes; with 1, this process writes.

    Yields:
      Each shard when it is finished.

    Raises:
      UserError: an image cannot be read (with ``on_bad="stop"``), or a shard cannot be written.
    """
    if workers > 1:
        yield from _write_in_pool(shards, on_bad, workers)
        return
    for shard in shards:
        _write(shard, on_bad, lambda: False)
        yield shard


def _write_in_pool(shards: Sequence[Shard], on_bad: OnBad, workers: int) -> Iterator[Shard]:
    # Spawn instead of fork: JAX, if imported, has threads, which a fork does not copy.
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
            "a worker process was killed, perhaps for lack of memory; "
            "rerun the command to resume, with fewer workers if necessary"
        ) from error
    finally:
        stopping.set()
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Blocks SIGINT, so that workers started inside the context ignore Ctrl-C."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_stopping: Event  # in a worker process: set when the preparation ends early


def _start_worker(stopping: Event) -> None:
    global _stopping
    _stopping = stopping
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this worker when its parent ends, even if the parent is killed."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _write_in_worker(shard: Shard, on_bad: OnBad) -> None:
    _write(shard, on_bad, _stopping.is_set)


def _write(shard: Shard, on_bad: OnBad, stopping: Callable[[], bool]) -> None:
    """Writes one shard and then its note, each to a temporary name first."""
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
    """Yields each image with its serialized `tf.train.Example`, or with the error."""
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
            # Without it, the order of the features differs between processes.
            yield image, example.SerializeToString(deterministic=True)


def _example(image: ImageFile) -> dict[str, Any]:
    pixels = square(decode(image.read(), draft=_DRAFT), SIDE)
    return {"image": encode(pixels), "label": image.label, "file_name": os.fsencode(image.name)}


def _write_records(path: pathlib.Path, records: Iterable[bytes]) -> int:
    """Writes an ArrayRecord file with TFDS and returns its size in bytes. Raises `OSError`."""
    adapter = file_adapters.ADAPTER_FOR_FORMAT[file_adapters.FileFormat.ARRAY_RECORD]
    try:
        adapter.write_examples(path, ((None, record) for record in records))
    except RuntimeError as error:  # from the C++ writer
        raise OSError(" ".join(str(error).split())) from error
    with open(path, "rb") as file:
        os.fsync(file.fileno())  # so that after a power failure no note exists without its shard
    return path.stat().st_size


def _unreadable(image: ImageFile, reason: BadImage) -> UserError:
    return UserError(
        f"{image} cannot be read ({reason}); replace or remove it and rerun the command, or skip "
        "such images (on_bad=skip)"
    )


def unwritable(path: pathlib.Path, error: OSError) -> UserError:
    """The error for a file that cannot be written."""
    return UserError(
        f"{path} cannot be written ({error.strerror or error}); free disk space, or choose another "
        "data directory, and rerun the command"
    )
