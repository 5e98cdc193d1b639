"""A workdir's own files: the config and the description of the data beside the checkpoints."""

import contextlib
import os
from collections.abc import Iterator, Sequence

from etils import epath
from ml_collections import ConfigDict

from multipath_jax.checkpoints.store import steps_in, unused
from multipath_jax.config import keys as config_lib
from multipath_jax.data.description import Description, differences, read_description, to_json
from multipath_jax.errors import UserError
from multipath_jax.parallel import processes
from multipath_jax.utils import filesystem, progress, storage

CONFIG_FILE = "config.json"
DATASET_FILE = "dataset.json"
EARLIER = "earlier"  # what a restart puts aside


def move_aside(workdir: epath.Path, names: Sequence[str]) -> list[str]:
    """Moves files and folders of the workdir, those that there are, to one of ``earlier``.

    Returns:
      What to say of it.
    """
    said = []
    if processes.is_first():
        there, aside = sorted({*names} & {*storage.names(workdir)}), unused(workdir / EARLIER)
        for name in there:
            storage.make(aside)
            storage.move(workdir / name, aside / name)
            said = [f"beginning afresh; what was here is now in {aside}"]
    processes.wait_for_all("move aside")
    return said


def check_workdir(workdir: epath.Path, config: ConfigDict, restart: bool = False) -> None:
    """Refuses the workdir of another run, and leaves it as it is.

    Args:
      restart: what it holds is moved aside, and may be of any run.

    Raises:
      UserError: it holds another recipe or model (the keys that differ are listed), or
        checkpoints without a config, or it is no folder that can be written.
    """
    path = workdir / CONFIG_FILE
    if "\\" in os.fspath(workdir):
        raise UserError(
            f"workdir {workdir} has a backslash, which checkpoints take for a slash; use another"
        )
    if storage.is_file(workdir):
        raise UserError(f"workdir {workdir} is no folder")
    if restart:
        return
    if not storage.exists(path):
        if steps_in(workdir):
            raise UserError(f"workdir {workdir} has checkpoints but no {CONFIG_FILE}; use another")
        return
    differing = config_lib.differences(config_lib.read_config(path), config)
    if differing:
        raise UserError(
            f"workdir {workdir} holds a run of another config ({'; '.join(differing)}); "
            "use another workdir, or the config it was started with"
        )


def check_data(workdir: epath.Path, description: Description) -> list[str]:
    """Refuses the workdir of a run that was trained on other data.

    Returns:
      What to say of the test images, if these alone are other ones.

    Raises:
      UserError: the classes, the training images or their statistics differ (how, is said), or it
        has checkpoints but no readable description of its data.
    """
    path = workdir / DATASET_FILE
    # Asked in this order: the first of several processes may be writing both, one after the other.
    trained = steps_in(workdir)
    if not storage.exists(path) and not trained:
        return []
    found = differences(read_description(path), description)
    tested = found.pop("test", None)
    if found:
        raise UserError(
            f"workdir {workdir} holds a run of other data ({'; '.join(found.values())}); "
            "use another workdir, or the data it was trained on"
        )
    return [f"test errors before and after are of different images ({tested})"] if tested else []


@contextlib.contextmanager
def claimed(workdir: epath.Path) -> Iterator[None]:
    """The workdir, made if need be, for this run alone; see `storage.claimed`.

    Raises:
      UserError: another run has it, or it cannot be written.
    """
    if not processes.is_first():
        yield
        return
    with storage.claimed(workdir, progress.say):
        yield


def write_config(workdir: epath.Path, config: ConfigDict) -> None:
    """Stores the config beside the checkpoints, at once or not at all.

    Raises:
      UserError: the folder cannot be written.
    """
    _write(workdir / CONFIG_FILE, config_lib.to_json(config))


def write_description(workdir: epath.Path, description: Description) -> None:
    """Stores beside the checkpoints what a run is trained on, as `write_config` does; once."""
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
