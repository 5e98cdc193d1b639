"""Opening a data set that TFDS has prepared, and preparing it if that is possible.

Reading does not need TensorFlow. Preparing CIFAR does, and runs in a separate process, so that
TensorFlow takes neither time nor device memory from the training that follows.
"""

import contextlib
import importlib.util
import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable

import tensorflow_datasets as tfds
from absl import logging
from etils import epath
from google.protobuf.json_format import ParseError
from tensorflow_datasets.core import read_only_builder

from multipath_jax.data import digits
from multipath_jax.data.imagenet import dataset as imagenet
from multipath_jax.errors import UserError
from multipath_jax.utils import filesystem, storage
from multipath_jax.utils.names import nearest

_DOWNLOADED = ("cifar10", "cifar100")  # downloaded and prepared automatically if missing
_HERE = "tfds"  # local folder, in commands that prepare a data set for a bucket
_BUCKETS = "gs://"  # the only remote file system that array_record reads
_NAME = re.compile(r"\w+(/[\w.-]+)?(:[\d.*]+)?")  # name/config:version


def open_prepared(name: str, data_dir: str | os.PathLike | None) -> tfds.core.DatasetBuilder:
    """Opens a prepared data set; prepares `digits`, and CIFAR if TensorFlow is installed.

    Args:
      name: as `name/config:version`.
      data_dir: the folder of prepared data sets; None is TFDS's default.

    Returns:
      A TFDS builder whose `as_data_source` reads the records without TensorFlow.

    Raises:
      UserError: the data set is missing, damaged or has no ArrayRecord files.
    """
    data_dir = filesystem.path("data_dir", data_dir or tfds.core.constants.DATA_DIR)
    if filesystem.is_address(data_dir) and not os.fspath(data_dir).startswith(_BUCKETS):
        raise UserError(
            f"data_dir={data_dir}: array_record reads only local files and {_BUCKETS}; "
            "copy the data there"
        )
    try:
        if not _NAME.fullmatch(name):
            raise UserError(_unknown(name, data_dir))
        builder = _find(name, data_dir) or _prepare(name, data_dir)
    except OSError as error:
        raise UserError(
            f"{error.filename or data_dir} cannot be read ({filesystem.reason(error)}); fix that, "
            "or choose another data directory"
        ) from error
    _check_format(builder)
    return builder


def _find(name: str, data_dir: epath.Path) -> tfds.core.DatasetBuilder | None:
    """The prepared data set, or None if it is missing. Raises `UserError` if it is damaged."""
    try:
        present = _base_name(name) in storage.contents(data_dir)
    except FileNotFoundError:
        present = False
    except OSError as error:
        raise UserError(
            f"the data directory {data_dir} cannot be read ({filesystem.reason(error)}); choose "
            "another one"
        ) from error
    return _open(name, data_dir) if present else None


def _open(name: str, data_dir: epath.Path) -> tfds.core.DatasetBuilder | None:
    """As `_find`, for a data set whose folder exists."""
    folder = data_dir / _base_name(name)
    _check_complete(folder)
    try:
        return read_only_builder.builder_from_files(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        return None
    except (ParseError, ValueError) as error:
        raise UserError(
            f"the description of {name!r} in {data_dir} cannot be read ({one_line(error)}); "
            f"{start_again(folder)}"
        ) from error


def _prepare(name: str, data_dir: epath.Path) -> tfds.core.DatasetBuilder:
    """Prepares a missing data set. Raises `UserError` if that is not possible.

    Nothing is prepared in a bucket: this machine may not have enough disk space.
    """
    if filesystem.is_address(data_dir):
        raise UserError(_how_to_get(name, data_dir))
    if name == "digits":
        _prepare_digits(data_dir)
    elif name in _DOWNLOADED and _has_tensorflow():
        _prepare_with_tensorflow(name, data_dir)
    builder = _find(name, data_dir)
    if builder is None:
        raise UserError(_how_to_get(name, data_dir))
    return builder


def _prepare_digits(data_dir: epath.Path) -> None:
    logging.info("preparing digits in %s", data_dir)
    tfds.disable_progress_bar()  # it takes a second, and TFDS would report a download
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            digits.prepare_digits(os.fspath(data_dir))
    except (OSError, RuntimeError) as error:  # RuntimeError: from the C++ writer
        reason = getattr(error, "strerror", None) or one_line(error)
        raise UserError(
            f"digits cannot be written to {data_dir} ({reason}); free disk space, or choose a "
            "writable data directory"
        ) from error


def _prepare_with_tensorflow(name: str, data_dir: epath.Path) -> None:
    """Runs TFDS's preparation in a process without a GPU; its output shows any error."""
    logging.info("downloading and preparing %s in %s", name, data_dir)
    command = [sys.executable, "-c", _preparation(name, data_dir)]
    env = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    if not sys.stderr.isatty():
        env["TQDM_DISABLE"] = "1"  # in a log file, progress bars are one line of many megabytes
    subprocess.run(command, env=env, check=False)


def _preparation(name: str, data_dir: str | os.PathLike) -> str:
    """The Python statements that download and prepare a data set of TFDS."""
    name, folder = json.dumps(name), json.dumps(os.fspath(data_dir))  # in double quotes
    return (
        f"import tensorflow_datasets as tfds; tfds.builder({name}, data_dir={folder})"
        '.download_and_prepare(file_format="array_record")'
    )


def _has_tensorflow() -> bool:
    return importlib.util.find_spec("tensorflow") is not None


def _check_complete(folder: epath.Path) -> None:
    """Raises `UserError` if a version in the folder lacks its metadata."""
    for version in filter(tfds.core.Version.is_valid, _folders(folder)):
        for file in ("dataset_info.json", "features.json"):
            if not (folder / version / file).exists():
                raise UserError(
                    f"{folder / version} has no {file}; {start_again(folder / version)}"
                )


def _check_format(builder: tfds.core.DatasetBuilder) -> None:
    """Raises `UserError` if the data set has no ArrayRecord files."""
    formats = {file_format.value for file_format in builder.info.available_file_formats()}
    if "array_record" not in formats:
        raise UserError(
            f"{builder.data_dir} has {' and '.join(sorted(formats)) or 'no'} files, not "
            "array_record; convert it with: pip install tensorflow apache-beam mlcroissant && "
            f"tfds convert_format --dataset_version_dir={shlex.quote(builder.data_dir)} "
            "--out_file_format=array_record"
        )


# Error messages


def _base_name(name: str) -> str:
    """The part `name` of `name/config:version`."""
    return re.split("[/:]", name)[0]


def one_line(error: Exception) -> str:
    """An error's message without line breaks, or its type if the message is empty."""
    return " ".join(str(error).split()) or type(error).__name__


def _how_to_get(name: str, data_dir: epath.Path) -> str:
    """The error message for a missing data set: how to prepare it, or names that are similar."""
    base, config = _base_name(name), name.partition(":")[0].partition("/")[2]
    folder, command = data_dir / base / config, None
    begun = _was_begun(folder) and not _finished(folder)
    if base == imagenet.NAME and config in ("", *imagenet.CONFIGS):
        command = _copied(lambda there: imagenet.command(config, there), base, data_dir)
    elif base == "digits":
        command = _copied(_digits_command, base, data_dir)
    elif (variants := _finished(data_dir / base)) and not begun:
        return f"{data_dir / base} has no {name!r}, only {', '.join(variants)}; choose one of these"
    elif base in _registered():
        command = _copied(lambda there: _prepare_command(name, there), base, data_dir)
    if begun:
        again = command or f"`tfds build --data_dir={shlex.quote(os.fspath(data_dir))}`"
        again += "" if command else " in the folder of its builder, or as you prepared it"
        return (
            f"{folder} has no complete data set: a preparation of {name!r} was interrupted; "
            f"finish it with: {again}"
        )
    if command:
        return f"{data_dir} has no data set {name!r}; prepare it with: {command}"
    return _unknown(name, data_dir)


def _unknown(name: str, data_dir: epath.Path) -> str:
    known = {*_registered(), *_folders(data_dir)}
    near = nearest(name, known, 3, alike=0.6) or ", ".join(("digits", *_DOWNLOADED))
    return (
        f"unknown data set {name!r}; the nearest known names are {near} "
        f"(a data set of your own must be prepared by TFDS in {data_dir})"
    )


def _registered() -> list[str]:
    """The names of the data sets that TFDS can prepare."""
    return tfds.list_builders(with_community_datasets=False)


def _finished(folder: epath.Path) -> list[str]:
    """The complete versions in a data set's folder, or the configs that have one."""
    is_version = tfds.core.Version.is_valid
    return [
        name
        for name in _folders(folder)
        if is_version(name) or any(map(is_version, _folders(folder / name)))
    ]


def _was_begun(folder: epath.Path) -> bool:
    """Whether an interrupted preparation left an unfinished or empty folder."""
    inside = list(folder.iterdir()) if folder.is_dir() else None
    return inside == [] or any(folder.glob("incomplete.*")) or any(folder.glob("*/incomplete.*"))


def _folders(parent: epath.Path) -> list[str]:
    """The names of the folders in a folder, except TFDS's unfinished ones."""
    if not parent.is_dir():
        return []
    names = (path.name for path in parent.iterdir() if path.is_dir())
    return sorted(name for name in names if not name.startswith("incomplete."))


def _prepare_command(name: str, data_dir: str | os.PathLike) -> str:
    install = "" if _has_tensorflow() else "pip install tensorflow && "
    return f"{install}python -c {shlex.quote(_preparation(name, data_dir))}"


def _digits_command(data_dir: str | os.PathLike) -> str:
    statements = (
        f"from multipath_jax.data import load_dataset; load_dataset('digits', '{data_dir}')"
    )
    return f"python -c {shlex.quote(statements)}"


def _copied(
    command: Callable[[str | os.PathLike], str], base: str, data_dir: str | os.PathLike
) -> str:
    """The command that prepares a data set; for a bucket, it prepares locally and copies."""
    if not filesystem.is_address(data_dir):
        return command(data_dir)
    there = shlex.quote(f"{os.fspath(data_dir)}/")
    return f"{command(_HERE)} && gcloud storage cp --recursive {_HERE}/{base} {there}"


def start_again(folder: str | os.PathLike) -> str:
    """Advice for a damaged data set; the next run prepares it, or says how to."""
    remove = "gcloud storage rm" if filesystem.is_address(folder) else "rm"
    return f"remove it with `{remove} -r {shlex.quote(os.fspath(folder))}` and rerun the command"
