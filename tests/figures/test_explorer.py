"""Tests of the data that are embedded in the page: compact numbers and thumbnails."""

import base64
import io

import numpy as np
import pytest
import small_networks
from PIL import Image

from multipath_jax.data.datasets import Split
from multipath_jax.figures import explorer
from multipath_jax.gates import observe, outline


def integers(text):
    return np.frombuffer(base64.b64decode(text), "<u2")


def smooth_images(count, side=32):
    """Color gradients, which are as compressible as photographs."""
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 256, (count, 2, 2, 3)).astype(np.uint8)
    resized = [Image.fromarray(corner).resize((side, side)) for corner in corners]
    return np.stack([np.asarray(image) for image in resized])


def thumbnail(sheets, number):
    """Cuts a thumbnail out of its sheet, as the page does."""
    kind, content = sheets["sheets"][number // sheets["perSheet"]].split(",")
    assert kind == "data:image/webp;base64"
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
    place = number % sheets["perSheet"]
    top = place // sheets["columns"] * sheets["tileHeight"]
    left = place % sheets["columns"] * sheets["tileWidth"]
    return sheet[top : top + sheets["height"], left : left + sheets["width"]]


@pytest.fixture(scope="module")
def packed():
    images, labels = small_networks.images(11), small_networks.labels(11)
    trained = small_networks.network(paths=3)
    observation = observe(trained, images)
    explored = explorer.Explored(
        outline(trained, (8, 8, 2)), observation, Split(images, labels), small_networks.CLASSES
    )
    return explorer.pack(explored, 4), observation


def test_images_are_evenly_spaced_over_the_split(packed):
    images = packed[0]["images"]
    assert (images["total"], images["numbers"]) == (11, [0, 3, 7, 10])
    np.testing.assert_array_equal(
        integers(images["labels"]), small_networks.labels(11)[[0, 3, 7, 10]]
    )


def test_gates_are_kept_to_half_a_step(packed):
    pack, observation = packed
    for router, record in zip(pack["routers"], observation.routers, strict=True):
        m, n = router["inputs"], router["outputs"]
        kept = integers(router["gates"]).reshape(4, m, n) / 65535
        expected = np.moveaxis(record.gates, 1, 0)[[0, 3, 7, 10]]
        np.testing.assert_allclose(kept, expected, atol=0.51 / 65535)


def test_the_likeliest_classes_come_first(packed):
    pack, observation = packed
    likeliest = pack["images"]["likeliest"]
    assert likeliest["count"] == 3  # there are only three classes
    classes = integers(likeliest["classes"]).reshape(4, 3)
    kept = integers(likeliest["probabilities"]).reshape(4, 3) / 65535
    rows = observation.probabilities[[0, 3, 7, 10]]
    np.testing.assert_array_equal(classes[:, 0], rows.argmax(1))
    np.testing.assert_allclose(kept, -np.sort(-rows, axis=1), atol=0.51 / 65535)


def test_few_pixels_are_kept_as_they_are():
    images = smooth_images(5, side=20)
    sheets = explorer.thumbnails(images)
    for number, image in enumerate(images):
        np.testing.assert_array_equal(thumbnail(sheets, number), image)


def test_many_pixels_are_compressed_in_sheets(monkeypatch):
    monkeypatch.setattr(explorer, "LOSSLESS", 0)
    monkeypatch.setattr(explorer, "SHEET_SIDE", 128)  # four tiles of 48x48 pixels per sheet
    images = smooth_images(11, side=40)
    sheets = explorer.thumbnails(images)
    assert (sheets["perSheet"], len(sheets["sheets"])) == (4, 3)
    for number, image in enumerate(images):
        difference = np.abs(thumbnail(sheets, number).astype(int) - image)
        assert difference.mean() < 8  # of 255: a lossy copy of the right image
    assert np.abs(thumbnail(sheets, 0).astype(int) - images[1]).mean() > 20


def test_large_images_become_thumbnails():
    sheets = explorer.thumbnails(smooth_images(2, side=300))
    assert (sheets["height"], sheets["width"]) == (96, 96)
