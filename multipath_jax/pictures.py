"""Picture files as a trained network sees them."""

import os
import pathlib
from collections.abc import Iterable

import numpy as np
from jaxtyping import UInt8

from multipath_jax.data.files import SUFFIXES, LeftOut, images_within
from multipath_jax.data.images import BadImage, decode_into
from multipath_jax.errors import UserError
from multipath_jax.runs import LoadedRun


def find(paths: Iterable[str | os.PathLike], left_out: LeftOut) -> list[pathlib.Path]:
    """Files as they are given; of folders all pictures in them, as training finds them.

    Args:
      left_out: counts what else is in the folders.

    Raises:
      UserError: a folder has no pictures, or cannot be read.
    """
    found = []
    for path in map(pathlib.Path, paths):
        inside = _inside(path, left_out) if os.path.isdir(path) else [path]
        if not inside:
            raise UserError(
                f"{path} has no pictures ({', '.join(SUFFIXES)}); choose a folder that does"
            )
        found += inside
    return found


def _inside(folder: pathlib.Path, left_out: LeftOut) -> list[pathlib.Path]:
    return [pathlib.Path(entry.path) for entry in images_within(folder, left_out)]


def read(path: str | os.PathLike, run: LoadedRun) -> UInt8[np.ndarray, "h w c"]:
    """A picture of any size and mode, as the run's network sees those of its data set.

    A picture of the size that theirs are stored at is taken as it is, another is rescaled whole;
    then both are cropped as in evaluation. Grey where theirs are.

    Raises:
      BadImage: it cannot be read; the message is the reason.
    """
    stored = np.empty(run.description.stored_shape, np.uint8)
    try:
        encoded = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise BadImage(error.strerror or str(error)) from error
    decode_into(encoded, stored)
    return run.crop(stored[None])[0]
