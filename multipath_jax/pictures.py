"""Reading image files as input of a trained network."""

import os
import pathlib
from collections.abc import Iterable

import numpy as np
from jaxtyping import UInt8

from multipath_jax.data import brought_to
from multipath_jax.data.description import Description
from multipath_jax.data.files import SUFFIXES, LeftOut, images_within
from multipath_jax.data.images import PIL_MODES, BadImage, decode_into
from multipath_jax.errors import UserError
from multipath_jax.runs import LoadedRun


def find(paths: Iterable[str | os.PathLike], left_out: LeftOut) -> list[pathlib.Path]:
    """Lists image files; folders are replaced by the images in them, at any depth.

    Args:
      paths: files and folders.
      left_out: updated with the number of ignored files in the folders.

    Returns:
      The files.

    Raises:
      UserError: a folder has no images, or cannot be read.
    """
    found = []
    for path in map(pathlib.Path, paths):
        inside = _inside(path, left_out) if os.path.isdir(path) else [path]
        if not inside:
            raise UserError(
                f"{path} has no images ({', '.join(SUFFIXES)}); choose a folder with images"
            )
        found += inside
    return found


def _inside(folder: pathlib.Path, left_out: LeftOut) -> list[pathlib.Path]:
    return [pathlib.Path(entry.path) for entry in images_within(folder, left_out)]


def read(path: str | os.PathLike, run: LoadedRun) -> UInt8[np.ndarray, "h w c"]:
    """Reads an image of any size and mode and converts it to the input of a run's network.

    It is rescaled to the size of the stored images, cropped as in evaluation, and converted to
    their number of channels. For one of several data sets, it is first rescaled to the size of the
    images of this data set, as they were, so that it is as sharp as these.

    Args:
      path: the image file.
      run: the run.

    Returns:
      Pixels ``[h w c]``, as `LoadedRun.logits` takes them.

    Raises:
      BadImage: the file cannot be read; the message is the reason.
      UserError: image files do not have the pixels that the network takes.
    """
    description = run.description
    _check_pixels(description)
    pixels = np.empty(description.original_shape or description.stored_shape, np.uint8)
    try:
        encoded = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise BadImage(error.strerror or str(error)) from error
    decode_into(encoded, pixels)
    return run.crop(brought_to(pixels[None], description.stored_shape))[0]


def _check_pixels(description: Description) -> None:
    """Raises UserError unless image files can have the pixels of a data set."""
    if description.dtype != "uint8":
        raise UserError(
            f"the network was trained on {description.dtype} pixels, whose scale image files do "
            "not have; pass arrays to load_run(workdir).logits"
        )
    channels = description.stored_shape[-1]
    if channels not in PIL_MODES:
        raise UserError(
            f"the network takes {channels} channels, which image files do not have; pass arrays to "
            "load_run(workdir).logits"
        )
