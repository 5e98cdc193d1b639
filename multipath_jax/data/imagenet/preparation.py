"""Resumable, parallel preparation of a TFDS data set, which appears only when it is complete.

TFDS's own preparation uses one core and starts from the beginning after an interruption. Here,
finished shards are kept in a temporary folder:

    .../imagenet256/full/incomplete.1.0.0/
        lock            held by the process that prepares
        data/           the shards; renamed to .../imagenet256/full/1.0.0 at the end
        done/*.json     for each finished shard, its content and its source files

A shard is finished when its note in `done` exists. It is kept as long as its source files do not
change, so after an interruption, or after replacing a bad image, only the other shards are written.
"""

import contextlib
import hashlib
import os
import pathlib
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence

import filelock
import tensorflow_datasets as tfds
from tensorflow_datasets.core import dataset_builder

from multipath_jax.data.files import ImageFile
from multipath_jax.data.imagenet import shards
from multipath_jax.data.imagenet.shards import Done, OnBad, Shard
from multipath_jax.errors import UserError
from multipath_jax.utils import claims

BYTES_PER_IMAGE = 36_000  # measured: 35,400 each over 100 photographs, one of each class
LEFT_OUT = "left_out.txt"

# About ten seconds of work for one core, which an interruption loses. ImageNet has 651 files, so
# that all can be open at once under the usual limit of 1,024.
_IMAGES_PER_SHARD = 2048


class Preparation:
    """The preparation of one data set.

    Attributes:
      shards: all shards.
      pending: the shards that are not finished.
    """

    def __init__(
        self,
        builder: dataset_builder.DatasetBuilder,
        class_names: Sequence[str],
        splits: Mapping[str, Sequence[ImageFile]],
        on_bad: OnBad = "stop",
    ):
        """Finds the finished shards and removes unfinished files.

        Args:
          builder: the builder of the data set, which is not prepared; the result will be its
            `data_dir`.
          class_names: names in the order of the labels.
          splits: the images of each split.
          on_bad: for an image that cannot be read: "stop" with an error, or "skip" it.

        Raises:
          UserError: there are finished shards, but all are from another source.
        """
        self._builder, self._class_names, self._on_bad = builder, tuple(class_names), on_bad
        folder = work_folder(builder)
        self._data, self._notes = folder / "data", folder / "done"
        for folder in (self._data, self._notes):
            folder.mkdir(parents=True, exist_ok=True)
        self.shards = [shard for name in splits for shard in self._plan(name, splits[name])]
        self._check_source()
        self.pending = [shard for shard in self.shards if not self._finished(shard)]
        self._tidy()

    def _plan(self, split: str, images: Sequence[ImageFile]) -> list[Shard]:
        """Distributes the images over shards in pseudorandom order.

        The position of an image depends only on a hash of its name: not on the order of the files
        or the number of workers.
        """
        count = -(-len(images) // _IMAGES_PER_SHARD)
        parts = [[] for _ in range(count)]
        for position, image in sorted((_position(image), image) for image in images):
            parts[position % count].append(image)
        names = tfds.core.ShardedFileTemplate(
            data_dir=self._data,
            dataset_name=self._builder.name,
            split=split,
            filetype_suffix="array_record",
        )
        paths = (pathlib.Path(path) for path in names.sharded_filepaths(count))
        return [
            Shard(split, path, self._notes / f"{path.name}.json", self._class_names, tuple(part))
            for path, part in zip(paths, parts, strict=True)
        ]

    def _check_source(self) -> None:
        """Refuses to discard finished shards of another source, which may have taken hours."""
        if any(self._notes.iterdir()) and not any(shard.done() for shard in self.shards):
            raise UserError(
                f"the finished shards in {self._data} are from another source; use that source, "
                f"or remove them with `rm -r {shlex.quote(str(self._data.parent))}`"
            )

    def _finished(self, shard: Shard) -> bool:
        done = shard.done()
        return done is not None and (self._on_bad == "skip" or not done.left_out)

    def _tidy(self) -> None:
        finished = set(self.shards) - set(self.pending)
        keep = {path for shard in finished for path in (shard.path, shard.note)}
        for path in [*self._notes.iterdir(), *self._data.iterdir()]:
            if path not in keep:
                path.unlink()

    @property
    def space_needed(self) -> int:
        """The disk space, in bytes, that the pending shards are expected to take."""
        return BYTES_PER_IMAGE * sum(len(shard.images) for shard in self.pending)

    def write(self, workers: int) -> Iterator[Shard]:
        """Writes the pending shards; the results and errors are those of `shards.write`."""
        return shards.write(self.pending, self._on_bad, workers)

    def publish(self) -> dict[str, int]:
        """Writes the metadata of the data set and renames its folder to the final one.

        Returns:
          The number of images by split, and of skipped images under the key "left out".

        Raises:
          UserError: a split has no readable image, or the files cannot be written.
        """
        splits: dict[str, list[Done]] = {}
        for shard in self.shards:
            splits.setdefault(shard.split, []).append(shard.done())
        infos = [_split_info(name, parts) for name, parts in splits.items()]
        left_out = [entry for parts in splits.values() for part in parts for entry in part.left_out]
        try:
            self._describe(infos, left_out)
            os.rename(self._data, self._builder.data_dir)
        except OSError as error:
            raise shards.unwritable(self._data, error) from error
        return {info.name: info.num_examples for info in infos} | {"left out": len(left_out)}

    def _describe(self, splits: list[tfds.core.SplitInfo], left_out: list[list[str]]) -> None:
        info = self._builder.info
        info.features["label"].names = list(self._class_names)
        info.set_splits(tfds.core.SplitDict(splits))
        info.write_to_directory(self._data)
        if left_out:
            lines = (f"{image}\t{reason}\n" for image, reason in sorted(left_out))
            (self._data / LEFT_OUT).write_text("".join(lines), "utf-8", "surrogateescape")


def is_prepared(builder: dataset_builder.DatasetBuilder) -> bool:
    """Whether the data set is prepared. (TFDS's own test logs a warning if it is not.)"""
    return os.path.exists(builder.data_dir)


def work_folder(builder: dataset_builder.DatasetBuilder) -> pathlib.Path:
    """The temporary folder for shards; TFDS ignores folders with such names."""
    folder = pathlib.Path(builder.data_dir)
    return folder.with_name(f"incomplete.{folder.name}")


@contextlib.contextmanager
def claim(builder: dataset_builder.DatasetBuilder) -> Iterator[None]:
    """Context manager: locks the preparation of a data set.

    On exit, the temporary folder is removed if the data set is complete or no shard was begun.

    Raises:
      UserError: another process is preparing the data set, or the folder cannot be written.
    """
    folder = work_folder(builder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = claims.lock(folder / "lock").acquire()
    except filelock.Timeout as error:
        raise UserError(
            f"another process is preparing {folder}; wait for it, or end it first"
        ) from error
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror}); choose another data directory"
        ) from error
    with lock:
        try:
            yield
        finally:
            if is_prepared(builder) or not (folder / "done").exists():
                shutil.rmtree(folder)


def _position(image: ImageFile) -> int:
    name = os.fsencode(f"{image.label}/{image.name}")
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest())


def _split_info(name: str, parts: Sequence[Done]) -> tfds.core.SplitInfo:
    info = tfds.core.SplitInfo(
        name=name,
        shard_lengths=[part.records for part in parts],
        num_bytes=sum(part.num_bytes for part in parts),
    )
    if not info.num_examples:
        raise UserError(f"no image of the split {name!r} can be read; check the source files")
    return info
