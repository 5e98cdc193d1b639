"""Prepares a data set for training.

    python -m multipath_jax.prepare imagenet --source=DIR --data_dir=DIR
    python -m multipath_jax.prepare imagenet --source=DIR --data_dir=DIR --config=subset100

Rescales ILSVRC2012 to 256x256 pixels, on all cores, and stores it as the TFDS data set imagenet256.
After an interruption, rerun the command to resume. --source is a folder with:

    ILSVRC2012_img_train.tar   or train/WNID/*.JPEG
    ILSVRC2012_img_val.tar     or val/WNID/*.JPEG, or val/*.JPEG
    labels of the validation images, unless they are in WNID folders: the development kit
    ILSVRC2012_devkit_t12.tar.gz, Kaggle's LOC_val_solution.csv, or val_labels.txt with lines
    "NAME WNID", or one WNID per line in the order of the sorted image names

Exit status: 0 success; 2 invalid input, or a file cannot be read or written; 130 after Ctrl-C.
"""

import argparse
import os
import pathlib
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from typing import NoReturn, get_args

import tensorflow_datasets as tfds
from tqdm import tqdm

from multipath_jax.data.imagenet import dataset as imagenet
from multipath_jax.data.imagenet.preparation import LEFT_OUT, Preparation, claim, is_prepared
from multipath_jax.data.imagenet.shards import OnBad
from multipath_jax.errors import UserError
from multipath_jax.utils import cli, filesystem

SECONDS_A_LINE = 60.0  # interval of progress lines, if the output is not a terminal
LINE = "{n_fmt} of {total_fmt} images after {elapsed}, {remaining} left"


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parses the flags. Raises UserError for unknown flags and invalid values."""
    parser = cli.Parser("prepare", __doc__)
    parser.add_argument("dataset", choices=("imagenet",))
    parser.add_argument("--source", required=True, metavar="DIR", help="folder with ILSVRC2012")
    parser.add_argument(
        "--data_dir",
        default=tfds.core.constants.DATA_DIR,
        metavar="DIR",
        help="TFDS data directory; default: %(default)s",
    )
    parser.add_argument("--config", choices=imagenet.CONFIGS, default=imagenet.CONFIGS[0])
    parser.add_argument(
        "--workers", type=int, default=_cores(), metavar="N", help="processes; default: all cores"
    )
    parser.add_argument(
        "--on_bad",
        choices=get_args(OnBad),
        default="stop",
        help="what to do with an unreadable image; default: stop",
    )
    parser.add_argument(
        "--val_labels", metavar="FILE", help="labels of the validation images; default: in --source"
    )
    flags = parser.parse_args(argv)
    if flags.workers < 1:
        raise UserError(f"--workers={flags.workers} must be at least 1")
    if "://" in flags.data_dir:
        raise UserError(
            f"--data_dir={flags.data_dir} is not on this machine; use a local folder and copy the "
            "result"
        )
    flags.data_dir = os.fspath(filesystem.local("--data_dir", flags.data_dir))
    return flags


def main(argv: Sequence[str]) -> int:
    """Prepares the data set and returns the exit status."""
    flags = parse(argv)
    try:
        builder = imagenet.builder(flags.config, flags.data_dir)
        with claim(builder):
            if is_prepared(builder):
                _say(f"{builder.info.full_name} is in {builder.data_dir} already")
            else:
                _prepare(builder, flags)
    except KeyboardInterrupt:
        _say("\ninterrupted; rerun the command to resume with the shards that are not finished")
        return 128 + signal.SIGINT
    except OSError as error:
        raise UserError(
            f"{error.filename or flags.data_dir}: {error.strerror or error}; fix that, and rerun "
            "the command"
        ) from error
    return 0


def _say(line: str) -> None:
    """Prints a line; if the pipe is closed, the preparation continues without output."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _prepare(builder: tfds.core.DatasetBuilder, flags: argparse.Namespace) -> None:
    _say(f"listing {flags.source}")
    source = imagenet.find(flags.config, flags.source, flags.val_labels)
    _say(
        f"{len(source.train):,} training and {len(source.validation):,} validation images of "
        f"{len(source.class_names):,} classes"
    )
    if source.left_out:
        _say(f"left out: {source.left_out}")
    splits = {"train": source.train, "validation": source.validation}
    preparation = Preparation(builder, source.class_names, splits, flags.on_bad)
    _check_space(preparation, flags.data_dir)
    _write(preparation, flags.workers)
    counts = preparation.publish()
    _say(
        f"{builder.info.full_name} is in {builder.data_dir}: {counts['train']:,} training and "
        f"{counts['validation']:,} validation images"
    )
    if counts["left out"]:
        listed = pathlib.Path(builder.data_dir, LEFT_OUT)
        _say(f"{counts['left out']:,} unreadable images left out; listed in {listed}")


def _check_space(preparation: Preparation, data_dir: str) -> None:
    """Prints the disk space needed. Raises UserError if there is less."""
    needed, free = preparation.space_needed, shutil.disk_usage(data_dir).free
    total, finished = len(preparation.shards), len(preparation.shards) - len(preparation.pending)
    already = f"; {finished} of {total} shards are finished already" if finished else ""
    _say(f"{data_dir}: about {_size(needed)} needed, {_size(free)} free{already}")
    if needed > free:
        raise UserError(
            f"{data_dir} has {_size(free)} free, but about {_size(needed)} are needed; "
            "free disk space, or choose another --data_dir"
        )


def _write(preparation: Preparation, workers: int) -> None:
    """Writes the shards with a progress bar, or with progress lines in a log."""
    total = sum(len(shard.images) for shard in preparation.shards)
    before = done = total - sum(len(shard.images) for shard in preparation.pending)
    begun = said = time.monotonic()
    with tqdm(
        total=total,
        initial=before,
        unit="image",
        dynamic_ncols=True,
        smoothing=0,
        disable=None,
    ) as bar:
        for shard in preparation.write(workers):
            bar.update(len(shard.images))
            done, now = done + len(shard.images), time.monotonic()
            if bar.disable and now - said >= SECONDS_A_LINE:
                said = now
                form = {"initial": before, "bar_format": LINE}
                _say(tqdm.format_meter(done, total, now - begun, **form))


def _size(number: int) -> str:
    return tqdm.format_sizeof(number, "B")


def _cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def run() -> NoReturn:
    """The entry point."""
    cli.run(main)


if __name__ == "__main__":
    run()
