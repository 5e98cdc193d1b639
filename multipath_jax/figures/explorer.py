"""What the page's route explorer is given: test images and what the routers did with them.

Numbers in [0, 1] travel as 16-bit integers (steps of 1/65,535) and pictures as sheets of
thumbnails: 10,000 images of CIFAR-10 and the five routers of BaseCNN-3-CC take 6.4 MB.
"""

import base64
import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped, UInt8
from PIL import Image

from multipath_jax.data.datasets import Split
from multipath_jax.figures import selectors
from multipath_jax.figures.routes import relative_strength
from multipath_jax.gates import Observation, Outline
from multipath_jax.utils.names import shown

LIKELIEST = 5  # classes said of each image
SIDE = 96  # pixels, the largest of a thumbnail
SHEET_SIDE = 2048  # pixels, the largest of a sheet of them
LOSSLESS = 2_000_000  # pixels of all thumbnails, up to which they are kept as they are
BLOCK = 16  # pixels; no block of a compressed sheet holds parts of two thumbnails


@dataclasses.dataclass(frozen=True)
class Explored:
    """A network and a test split that went through it.

    Attributes:
      outline: of the network.
      observation: what it did with the images of the split.
      split: the images and their labels.
      class_names: in the order of the logits.
      kind: what the images are called.
    """

    outline: Outline
    observation: Observation
    split: Split
    class_names: Sequence[str]
    kind: str = "test"


def pack(explored: Explored, count: int) -> dict[str, Any]:
    """At most ``count`` images, evenly spaced over the split, as values for JSON."""
    numbers = selectors.spread(range(len(explored.split.images)), count)
    (liveliest,) = selectors.liveliest_gates(explored.observation, 1)
    return {
        "images": _images(explored, numbers),
        "routers": [
            {
                "name": router.name,
                "inputs": router.gates.shape[0],
                "outputs": router.gates.shape[2],
                "gates": _fractions(router.vectors[numbers]),
                "input_strength": _fractions(relative_strength(router.input_strength).T[numbers]),
                "output_strength": _fractions(relative_strength(router.output_strength).T[numbers]),
            }
            for router in explored.observation.routers
        ],
        "stacks": explored.outline.stacks,
        "picked": [number - 1 for number in liveliest],
    }


def _images(explored: Explored, numbers: Sequence[int]) -> dict[str, Any]:
    probabilities = explored.observation.probabilities[numbers]
    likeliest = np.argsort(-probabilities, axis=1, kind="stable")[:, :LIKELIEST]
    return {
        "kind": explored.kind,
        "total": len(explored.split.images),
        "numbers": list(numbers),
        "classes": [shown(name) for name in explored.class_names],
        "labels": _integers(explored.split.labels[numbers]),
        "likeliest": {
            "count": likeliest.shape[1],
            "classes": _integers(likeliest),
            "probabilities": _fractions(np.take_along_axis(probabilities, likeliest, axis=1)),
        },
        "thumbnails": thumbnails(explored.split.images[numbers]),
    }


def _integers(values: Shaped[np.ndarray, "..."]) -> str:
    """Numbers from 0 to 65,535."""
    return base64.b64encode(values.astype("<u2").tobytes()).decode()


def _fractions(values: Float[np.ndarray, "..."]) -> str:
    """Numbers in [0, 1]."""
    return _integers(np.round(65535 * np.clip(values, 0, 1)))


def thumbnails(images: UInt8[np.ndarray, "b h w c"]) -> dict[str, Any]:
    """Sheets of small images, row by row, and where on them an image is."""
    small = np.stack([_small(image) for image in images])
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
    """An RGB image of at most `SIDE` pixels a side."""
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).convert("RGB")
    picture.thumbnail((SIDE, SIDE))
    return np.asarray(picture)


def _sheet(tiles: UInt8[np.ndarray, "b h w 3"], columns: int, lossless: bool) -> str:
    """A picture of tiles side by side, as the address of an image."""
    rows = -(-len(tiles) // columns)
    tiles = np.pad(tiles, [(0, rows * columns - len(tiles)), (0, 0), (0, 0), (0, 0)])
    tiles = tiles.reshape(rows, columns, *tiles.shape[1:])
    picture = np.concatenate(np.concatenate(tiles, axis=1), axis=1)
    encoded = io.BytesIO()
    Image.fromarray(picture).save(encoded, "WEBP", lossless=lossless, quality=80)
    return data_url("image/webp", encoded.getvalue())


def data_url(kind: str, content: bytes) -> str:
    """An address that holds what it stands for."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
