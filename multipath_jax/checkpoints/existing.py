"""Reads the checkpoints of a run that has ended, or is still training."""

import contextlib
import time
from collections.abc import Callable
from typing import TypeVar

from etils import epath

from multipath_jax.checkpoints.errors import Unreadable
from multipath_jax.checkpoints.store import FOLDER, Checkpoints
from multipath_jax.checkpoints.working_copy import stored_steps
from multipath_jax.errors import UserError
from multipath_jax.utils import filesystem, storage

SETTLING = 0.5  # seconds to wait while a running process may be deleting a checkpoint
ATTEMPTS = 10

T = TypeVar("T")


def steps_in(workdir: epath.PathLike) -> list[int]:
    """The steps of a workdir's checkpoints, including damaged ones, increasing."""
    return stored_steps(epath.Path(workdir) / FOLDER)


def open_existing(workdir: epath.PathLike) -> Checkpoints:
    """Opens the checkpoints of an existing run, read-only.

    Args:
      workdir: the workdir of the run.

    Raises:
      UserError: there are no checkpoints, or the folder cannot be read.
    """
    workdir = epath.Path(workdir)
    try:
        for _ in range(ATTEMPTS):
            with contextlib.suppress(FileNotFoundError):  # a checkpoint was deleted while listing
                if not steps_in(workdir):
                    break
                return Checkpoints(workdir, read_only=True)
        trials = [name for name in storage.names(workdir) if steps_in(workdir / name)]
    except OSError as error:
        raise UserError(f"{workdir} cannot be read ({filesystem.reason(error)})") from error
    hint = f"; its trials do: {', '.join(trials)}" if trials else ""
    raise UserError(f"{workdir} has no checkpoint{hint}")


def read_existing(
    workdir: epath.PathLike, which: str | int, read: Callable[[Checkpoints, int], T]
) -> tuple[int, T]:
    """Reads a checkpoint of a run that may still be training.

    If the run deletes the checkpoint while it is read, reading is repeated with the current one.

    Args:
      workdir: the workdir of the run.
      which: as in `Checkpoints.find`.
      read: a function ``(checkpoints, step) -> result``.

    Returns:
      The step of the checkpoint and the result of ``read``.

    Raises:
      UserError: there is no such checkpoint, or it is damaged or cannot be read.
    """
    for _ in range(ATTEMPTS):
        before = steps_in(workdir)
        with contextlib.closing(open_existing(workdir)) as found:
            step = found.find(which)
            try:
                return step, read(found, step)
            except Unreadable:
                time.sleep(SETTLING)
                if steps_in(workdir) == before:
                    raise
    raise UserError(
        f"the checkpoints of {workdir} are replaced faster than they can be read; try again when "
        "the run that writes them has ended"
    )
