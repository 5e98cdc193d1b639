"""The loader benchmark: the decoded pixels, and batches that are decoded ahead."""

import itertools

import numpy as np

from multipath_jax.benchmark import loader, photographs
from multipath_jax.data import open_encoded


def test_made_up_photographs_are_as_large_as_real_ones():
    """JPEGs of ImageNet take 31 kB on average, at 256x256 pixels and quality 95."""
    (image,) = photographs.encoded(1, 256, 256)
    assert 20e3 < len(image) < 45e3


def test_both_sides_give_the_same_pixels(tmp_path):
    images = photographs.encoded(2, 256, 256) + photographs.encoded(1, 500, 375)
    name = photographs.prepare(str(tmp_path), images)
    split = open_encoded(name, tmp_path, loader.SIDE).train
    found = split.load(np.arange(3))
    for pixels, label in zip(found.images, found.labels, strict=True):  # TFDS shuffles
        np.testing.assert_array_equal(pixels, loader.decode(images[label]))


def test_what_was_decoded_in_advance_does_not_count(monkeypatch):
    now, slept = [0.0], []
    monkeypatch.setattr(loader.time, "sleep", slept.append)

    def batches():
        for number in itertools.count():
            now[0] += 100.0 if number < loader.IN_ADVANCE else 2.0
            yield number

    run = loader.taking(batches(), clock=lambda: now[0])
    assert run(5) == 5 * loader.BATCHES * 2.0
    assert slept == [2 * loader.IN_ADVANCE * 2.0]
