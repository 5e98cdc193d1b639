"""The data of the page's route explorer: test images and the records of the routers.

Numbers in [0, 1] are stored as 16-bit integers (in units of 1/65,535), and images as sheets of
thumbnails: 10,000 images of CIFAR-10 with five routers of BaseCNN-3-CC take 6.4 MB.
"""

import base64
import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Num, Shaped, UInt8
from PIL import Image

from multipath_jax.data.datasets import Split
from multipath_jax.figures import selectors, style
from multipath_jax.figures.routes import relative_strength
from multipath_jax.gates import Observation, Outline
from multipath_jax.utils.names import printable

LIKELIEST = 5  # number of most probable classes per image
SIDE = 96  # largest side of a thumbnail, in pixels
SHEET_SIDE = 2048  # largest side of a sheet, in pixels
LOSSLESS = 2_000_000  # number of pixels in all thumbnails up to which compression is lossless
BLOCK = 16  # pixels; thumbnails are aligned to blocks, so that compression does not mix them


@dataclasses.dataclass(frozen=True)
class Explored:
    """A network and its records for a test split.

    Attributes:
      outline: the outline of the network.
      observation: the records for the images.
      split: the images and labels.
      class_names: names in the order of the logits.
      kind: kind of the images, for labels: "test" or "held-out".
      numbers: the numbers of the images in the whole split; None if these are all its images.
      total: number of images in the whole split; None if these are all.
    """

    outline: Outline
    observation: Observation
    split: Split
    class_names: Sequence[str]
    kind: str = "test"
    numbers: Int[np.ndarray, " b"] | None = None
    total: int | None = None


def pack(explored: Explored, count: int) -> dict[str, Any]:
    """The data of the explorer, as values for JSON.

    Args:
      explored: the network and its records.
      count: largest number of images, which are evenly spaced over the split.
    """
    places = selectors.evenly_spaced(range(len(explored.split)), count)
    (chosen,) = selectors.most_variable_gates(explored.observation, 1)
    return {
        "images": _images(explored, places),
        "routers": [
            {
                "name": router.name,
                "inputs": router.gates.shape[0],
                "outputs": router.gates.shape[2],
                "gates": _fractions(router.vectors[places]),
                "input_strength": _fractions(relative_strength(router.input_strength).T[places]),
                "output_strength": _fractions(relative_strength(router.output_strength).T[places]),
            }
            for router in explored.observation.routers
        ],
        "stacks": explored.outline.stacks,
        "picked": [number - 1 for number in chosen],
    }


def _images(explored: Explored, places: Sequence[int]) -> dict[str, Any]:
    probabilities = explored.observation.probabilities[places]
    likeliest = np.argsort(-probabilities, axis=1, kind="stable")[:, :LIKELIEST]
    return {
        "kind": explored.kind,
        "total": explored.total or len(explored.split),
        "numbers": list(places) if explored.numbers is None else explored.numbers[places].tolist(),
        "classes": [printable(name) for name in explored.class_names],
        "labels": _integers(explored.split.labels[places]),
        "likeliest": {
            "count": likeliest.shape[1],
            "classes": _integers(likeliest),
            "probabilities": _fractions(np.take_along_axis(probabilities, likeliest, axis=1)),
        },
        "thumbnails": thumbnails(explored.split.images[places]),
    }


def _integers(values: Shaped[np.ndarray, "..."]) -> str:
    """Encodes integers from 0 to 65,535 as base64."""
    return base64.b64encode(values.astype("<u2").tobytes()).decode()


def _fractions(values: Float[np.ndarray, "..."]) -> str:
    """Encodes numbers in [0, 1] as base64."""
    return _integers(np.round(65535 * np.clip(values, 0, 1)))


def thumbnails(images: Num[np.ndarray, "b h w c"]) -> dict[str, Any]:
    """Sheets of thumbnails, and the layout of the sheets.

    Args:
      images: ``[b h w c]``.
    """
    small = np.stack([_small(image) for image in style.pixels(images)])
    height, width = small.shape[1:3]
    padding = [(0, -height % BLOCK), (0, -width % BLOCK), (0, 0)]
    tiles = np.pad(small, [(0, 0), *padding], mode="edge")
    tile_height, tile_width = tiles.shape[1:3]
    columns = SHEET_SIDE // tile_width
    per_sheet = columns * (SHEET_SIDE // tile_height)
    lossless = tiles.size <= LOSSLESS * tiles.shape[-1]
    sheets = [
        _sheet(tiles[start : start + per_sheet], columns, lossless)
        for start in range(0, len(tiles), per_sheet)
    ]
    return {
        "width": width,
        "height": height,
        "tileWidth": tile_width,
        "tileHeight": tile_height,
        "columns": columns,
        "perSheet": per_sheet,
        "sheets": sheets,
    }


def _small(image: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Scales an image down to at most `SIDE` pixels, as RGB."""
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).convert("RGB")
    picture.thumbnail((SIDE, SIDE))
    return np.asarray(picture)


def _sheet(tiles: UInt8[np.ndarray, "b h w 3"], columns: int, lossless: bool) -> str:
    """Joins tiles into one WebP image, as a ``data:`` URL."""
    rows = -(-len(tiles) // columns)
    tiles = np.pad(tiles, [(0, rows * columns - len(tiles)), (0, 0), (0, 0), (0, 0)])
    tiles = tiles.reshape(rows, columns, *tiles.shape[1:])
    picture = np.concatenate(np.concatenate(tiles, axis=1), axis=1)
    encoded = io.BytesIO()
    Image.fromarray(picture).save(encoded, "WEBP", lossless=lossless, quality=80)
    return data_url("image/webp", encoded.getvalue())


def data_url(kind: str, content: bytes) -> str:
    """A ``data:`` URL with the content, for a MIME type such as ``image/png``."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
