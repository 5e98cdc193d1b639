"""Shared style of the figures: colors, sizes, drawing of images, saving."""

import os

import matplotlib
import numpy as np
from jaxtyping import Num, UInt8
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure

from multipath_jax.curves import COLORS  # Okabe and Ito's
from multipath_jax.utils import lettering

DPI = 150
WIDTH = 10.4  # inches, of the widest figures: 1,560 pixels
GREY = "#888888"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")  # used together with the colors

__all__ = ["COLORS", "DPI", "GREY", "MARKERS", "WIDTH"]


def _from_light(name: str) -> Colormap:
    """A sequential color map whose lowest color differs from white."""
    hues = matplotlib.colormaps[name](np.linspace(0.1, 0.95, 64))
    return LinearSegmentedColormap.from_list(f"light {name}", hues)


# The paper's colors (Section 7.1), monotonic in lightness.
STRENGTH = _from_light("Reds")
GATE = _from_light("Blues")


def save(figure: Figure, path: str | os.PathLike) -> None:
    """Writes a figure in the format given by the suffix of the path; replaces an existing file."""
    lettering.save(figure, path, DPI)


def ink(color: tuple[float, ...]) -> str:
    """The text color, black or white, with the higher contrast on a color."""
    return "black" if np.dot(color[:3], (0.299, 0.587, 0.114)) > 0.55 else "white"


def pixels(images: Num[np.ndarray, "*b h w c"]) -> UInt8[np.ndarray, "*b h w c"]:
    """Images for display.

    Args:
      images: uint8 images are returned as they are. Float images in [0, 1] are multiplied by 255;
        others are mapped linearly, each from its smallest and largest value to 0 and 255.
    """
    if images.dtype == np.uint8:
        return images
    low, high = 0.0, 1.0
    if images.min() < low or images.max() > high:
        low, high = (f(images, axis=(-3, -2, -1), keepdims=True) for f in (np.min, np.max))
    scaled = (images - low) / np.maximum(high - low, np.finfo(np.float32).tiny)
    return np.rint(255 * scaled).astype(np.uint8)


def show(axes: Axes, image: Num[np.ndarray, "h w c"]) -> None:
    """Shows an image without axes; small images without smoothing."""
    image = pixels(image)
    interpolation = "nearest" if max(image.shape[:2]) <= 256 else "antialiased"
    grey = {"cmap": "gray", "vmin": 0, "vmax": 255} if image.shape[-1] == 1 else {}
    axes.imshow(image[..., 0] if grey else image, interpolation=interpolation, **grey)
    axes.set_axis_off()


def montage(images: Num[np.ndarray, "b h w c"], columns: int) -> UInt8[np.ndarray, "h2 w2 c"]:
    """Arranges images in a grid on white, row by row: ``[b h w c] -> [h2 w2 c]``."""
    images = pixels(images)
    _, height, width, channels = images.shape
    gap = max(1, height // 12)
    rows = -(-len(images) // columns)
    shape = (rows * (height + gap) - gap, columns * (width + gap) - gap, channels)
    joined = np.full(shape, 255, np.uint8)
    for number, image in enumerate(images):
        top, left = (number // columns) * (height + gap), (number % columns) * (width + gap)
        joined[top : top + height, left : left + width] = image
    return joined


def readable(name: str) -> str:
    """The name of a module with spaces."""
    return name.replace("_", " ")
