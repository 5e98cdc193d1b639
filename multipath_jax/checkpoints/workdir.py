"""The config and the description of the data in a workdir, and their comparison with a run's."""

import contextlib
import json
import os
from collections.abc import Iterator, Sequence

from etils import epath
from ml_collections import ConfigDict

from multipath_jax.checkpoints.existing import steps_in
from multipath_jax.config import keys as config_lib
from multipath_jax.data.description import Description, differences, read_description, to_json
from multipath_jax.errors import UserError
from multipath_jax.parallel import processes
from multipath_jax.utils import claims, filesystem, progress, storage

CONFIG_FILE = "config.json"
DATASET_FILE = "dataset.json"
EARLIER = "earlier"  # folder to which --restart moves the files of a workdir


def move_aside(workdir: epath.Path, names: Sequence[str]) -> list[str]:
    """Moves files and folders of a workdir, if they exist, to a new folder in ``earlier``.

    Args:
      workdir: the workdir.
      names: names of files and folders in it.

    Returns:
      Lines to print.
    """
    messages = []
    if processes.is_first():
        there, aside = (
            sorted({*names} & {*storage.names(workdir)}),
            storage.unused(workdir / EARLIER),
        )
        for name in there:
            storage.make(aside)
            storage.move(workdir / name, aside / name)
            messages = [f"starting from scratch; the previous files are now in {aside}"]
    processes.wait_for_all("move aside")
    return messages


def check_workdir(workdir: epath.Path, config: ConfigDict, restart: bool = False) -> None:
    """Checks that a workdir is empty or has a run with this config; changes nothing.

    Args:
      workdir: the workdir.
      config: the config of the run.
      restart: whether the files will be moved aside, so that they may be of any run.

    Raises:
      UserError: it has a run with another config (the message lists the keys that differ), or
        checkpoints without a config, or is not a folder.
    """
    path = workdir / CONFIG_FILE
    if "\\" in os.fspath(workdir):
        raise UserError(
            f"workdir {workdir} has a backslash, which Orbax treats as a slash; use another"
        )
    if storage.is_file(workdir):
        raise UserError(f"workdir {workdir} is not a folder; use another")
    if restart:
        return
    if not storage.exists(path):
        if steps_in(workdir):
            raise UserError(f"workdir {workdir} has checkpoints but no {CONFIG_FILE}; use another")
        return
    differing = config_lib.differences(config_lib.read_config(path), config)
    if differing:
        raise UserError(
            f"workdir {workdir} has a run with another config ({'; '.join(differing)}); "
            "use another workdir, or the config it was started with"
        )


def with_stored_start(workdir: epath.Path, config: ConfigDict) -> tuple[ConfigDict, list[str]]:
    """Sets the keys of the initial weights to their values when a run began.

    Args:
      workdir: the workdir of the run, which has checkpoints.
      config: the config with which it resumes.

    Returns:
      The config, and a line to print if values differ, in a list; otherwise an empty list.
    """
    stored = config_lib.read_config(workdir / CONFIG_FILE)
    now = config_lib.flatten(json.loads(config_lib.to_json(config)))  # with absolute paths
    begun = {key: stored[key] for key in config_lib.INITIAL_KEYS}
    changed = [f"{key}: {begun[key]!r} -> {now[key]!r}" for key in begun if begun[key] != now[key]]
    kept = config.copy_and_resolve_references()
    kept.update(begun)
    said = f"{'; '.join(changed)}: no effect on a run that has begun"
    return kept, [said] if changed else []


def check_data(workdir: epath.Path, description: Description) -> list[str]:
    """Checks that a workdir is empty or has a run that was trained on the same data.

    Args:
      workdir: the workdir.
      description: metadata of the data.

    Returns:
      A line to print if only the test images differ, in a list; otherwise an empty list.

    Raises:
      UserError: the classes, the training images or their statistics differ (the message says how),
        or there are checkpoints but no readable description of their data.
    """
    path = workdir / DATASET_FILE
    # In this order: process 0 may be writing the description and then checkpoints concurrently.
    trained = steps_in(workdir)
    if not storage.exists(path) and not trained:
        return []
    found = differences(read_description(path), description)
    tested = found.pop("test", None)
    if found:
        raise UserError(
            f"workdir {workdir} has a run on other data ({'; '.join(found.values())}); "
            "use another workdir, or the data it was trained on"
        )
    return [f"the test images have changed since the run began ({tested})"] if tested else []


@contextlib.contextmanager
def claimed(workdir: epath.Path) -> Iterator[None]:
    """Context manager: creates the workdir if necessary and locks it; see `claims.claimed`.

    Raises:
      UserError: another run has the lock, or the folder cannot be written.
    """
    if not processes.is_first():
        yield
        return
    with claims.claimed(workdir, progress.say):
        yield


def write_config(workdir: epath.Path, config: ConfigDict) -> None:
    """Writes the config to the workdir, atomically.

    Raises:
      UserError: the folder cannot be written.
    """
    _write(workdir / CONFIG_FILE, config_lib.to_json(config))


def write_description(workdir: epath.Path, description: Description) -> None:
    """Writes the description of the data to the workdir, unless there is one already."""
    path = workdir / DATASET_FILE
    if not storage.exists(path):
        _write(path, to_json(description))


def _write(path: epath.Path, text: str) -> None:
    if not processes.is_first():
        return
    try:
        storage.write(path, text.encode())
    except OSError as error:
        raise UserError(
            f"workdir {path.parent} cannot be written ({filesystem.reason(error)})"
        ) from error
