"""What the figures share: colors, sizes, images in axes, and how they are saved."""

import os

import matplotlib
import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure

from multipath_jax.curves import COLORS  # Okabe and Ito's
from multipath_jax.utils import lettering

DPI = 150
WIDTH = 10.4  # inches, of the widest figures: 1,560 pixels
GREY = "#888888"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")  # the shapes say again what the colors say

__all__ = ["COLORS", "DPI", "GREY", "MARKERS", "WIDTH"]


def _from_light(name: str) -> Colormap:
    """A map of one hue whose zero can be told from the paper."""
    hues = matplotlib.colormaps[name](np.linspace(0.1, 0.95, 64))
    return LinearSegmentedColormap.from_list(f"light {name}", hues)


# The paper's colors (Section 7.1). Lightness alone tells their values apart.
STRENGTH = _from_light("Reds")
GATE = _from_light("Blues")


def save(figure: Figure, path: str | os.PathLike) -> None:
    """Writes the figure, in the format that the name's ending says; replaces an older one."""
    lettering.save(figure, path, DPI)


def ink(color: tuple[float, ...]) -> str:
    """Black or white, whichever is read more easily on a color."""
    return "black" if np.dot(color[:3], (0.299, 0.587, 0.114)) > 0.55 else "white"


def show(axes: Axes, image: UInt8[np.ndarray, "h w c"]) -> None:
    """An image without axes; small ones with their pixels to be seen."""
    interpolation = "nearest" if max(image.shape[:2]) <= 256 else "antialiased"
    grey = {"cmap": "gray", "vmin": 0, "vmax": 255} if image.shape[-1] == 1 else {}
    axes.imshow(image[..., 0] if grey else image, interpolation=interpolation, **grey)
    axes.set_axis_off()


def montage(images: UInt8[np.ndarray, "b h w c"], columns: int) -> UInt8[np.ndarray, "h2 w2 c"]:
    """Images of one size side by side on white, row after row."""
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
    """A module's name as words."""
    return name.replace("_", " ")
