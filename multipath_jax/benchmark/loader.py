"""The loader of encoded images against processes that only decode, with Pillow."""

import io
import multiprocessing
import tempfile
import time
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from multipath_jax.benchmark import photographs
from multipath_jax.benchmark.rows import Part, Row, at_least
from multipath_jax.benchmark.settings import Settings
from multipath_jax.benchmark.timing import Clock, Contestant, Times
from multipath_jax.data import EncodedSplit, open_encoded
from multipath_jax.data.loader import training_batches

WORKERS = 2  # processes of each contestant
SIDE = 256
SIZES = {"256x256": (256, 256), "500x375": (500, 375)}  # prepared images; typical ImageNet images
BATCHES = 16  # batches per call; many, so that batches decoded ahead matter little
# Upper bound of the number of batches that the loader decodes ahead.
IN_ADVANCE = 5 * WORKERS


def decode(encoded: bytes) -> np.ndarray:
    """Decodes and rescales an image with Pillow in the simplest way."""
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    if image.size != (SIDE, SIDE):
        image = image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    return np.asarray(image)


_images: Sequence[bytes] = ()  # in a decoding process


def _give(images: Sequence[bytes]) -> None:
    global _images
    _images = images


def _decode_many(count: int) -> None:
    for index in range(count):
        decode(_images[index % len(_images)])


class Bare:
    """Pillow in `WORKERS` processes, with the images in memory; the pixels are discarded."""

    def __init__(self, images: Sequence[bytes], batch_size: int, clock: Clock = time.perf_counter):
        context = multiprocessing.get_context("spawn")
        self._pool = context.Pool(WORKERS, _give, (images,))
        self._count, self._clock = batch_size, clock

    def __call__(self, calls: int) -> float:
        """Decodes ``calls * BATCHES`` batches and returns the seconds."""
        begun = self._clock()
        share = calls * BATCHES * self._count // WORKERS
        self._pool.map(_decode_many, [share] * WORKERS, chunksize=1)
        return self._clock() - begun

    def close(self) -> None:
        self._pool.terminate()
        self._pool.join()


def taking(batches: Iterator, clock: Clock = time.perf_counter) -> Contestant:
    """A loader as a contestant; batches that were decoded ahead between calls are not counted."""

    def run(calls: int) -> float:
        for _ in range(IN_ADVANCE):
            next(batches)
        begun = clock()
        for _ in range(calls * BATCHES):
            next(batches)
        seconds = clock() - begun
        # Waits until the loader's buffers are full, so that it does not disturb other contestants.
        time.sleep(2 * IN_ADVANCE * seconds / (calls * BATCHES))
        return seconds

    return run


def _loader(settings: Settings, name: str) -> Iterator[Row]:
    count, batch_size = (128, 16) if settings.quick else (1024, 64)
    width, height = SIZES[name]
    images = photographs.encoded(count, width, height)
    with tempfile.TemporaryDirectory() as folder:
        train = open_encoded(photographs.prepare(folder, images), folder, SIDE).train
        times = _compare(train, images, batch_size, settings)
    rates = {who: 1e3 * BATCHES * batch_size / times.milliseconds(who) for who in times.seconds}
    yield Row(
        f"JPEGs of {name}, {WORKERS} processes",
        "images/s of the loader / of bare Pillow",
        times.ratio("bare", "loader"),
        at_least(0.9),
        {f"{who} images/s": rate for who, rate in rates.items()}
        | {"an image kB": sum(map(len, images)) / len(images) / 1e3},
    )


# The images per second of the loader over those of bare decoding, for each size.
LOADER = Part(lambda _: tuple(SIZES), _loader)


def _compare(
    train: EncodedSplit, images: Sequence[bytes], batch_size: int, settings: Settings
) -> Times:
    bare = Bare(images, batch_size)
    try:
        with training_batches(train, 0, batch_size, WORKERS) as batches:
            return settings.interleave({"loader": taking(batches), "bare": bare})
    finally:
        bare.close()
