"""Center crops and ten crops compared with slices; images in memory or decoded on demand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multipath_jax.config.keys import default_config
from multipath_jax.data import Dataset, EncodedSplit, Split
from multipath_jax.data.images import encode
from multipath_jax.data.records import Record
from multipath_jax.evaluation.crops import center_crop, ten_crop_log_probabilities, ten_crops
from multipath_jax.evaluation.evaluate import Views, make_evaluator
from multipath_jax.parallel.devices import make_mesh

SIDE, CROP, CLASSES, COUNT = 8, 5, 7, 23


def by_hand(image):
    """The ten crops of an image `[h w c]`, by slicing."""
    far_y, far_x = image.shape[0] - CROP, image.shape[1] - CROP
    places = [(0, 0), (0, far_x), (far_y, 0), (far_y, far_x), (far_y // 2, far_x // 2)]
    five = [image[y : y + CROP, x : x + CROP] for y, x in places]
    return np.stack(five + [crop[:, ::-1] for crop in five])


def softmax(logits):
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


@pytest.mark.parametrize("shape", [(8, 8), (9, 6), (5, 5)])
def test_ten_crops_are_corners_centre_and_mirror_images(shape):
    images = np.random.default_rng(0).integers(0, 256, (3, *shape, 2), np.uint8)
    found = np.asarray(jax.jit(ten_crops, static_argnums=1)(images, CROP))
    for number, image in enumerate(images):
        np.testing.assert_array_equal(found[:, number], by_hand(image))
        np.testing.assert_array_equal(
            center_crop(jnp.asarray(images), CROP)[number], by_hand(image)[4]
        )


def test_softmaxes_are_averaged_not_logits():
    rng = np.random.default_rng(1)
    images = rng.normal(size=(4, SIDE, SIDE, 1)).astype(np.float32)
    kernel = rng.normal(size=(CROP * CROP, CLASSES)).astype(np.float32)
    classify = lambda crops: crops.reshape(len(crops), -1) @ kernel  # noqa: E731
    found = np.exp(ten_crop_log_probabilities(classify, jnp.asarray(images), CROP))
    for probabilities, image in zip(found, images, strict=True):
        logits = by_hand(image).reshape(10, -1) @ kernel
        np.testing.assert_allclose(probabilities, softmax(logits).mean(0), rtol=1e-4)  # float32
        assert not np.allclose(probabilities, softmax(logits.mean(0)), rtol=1e-2)


class Linear(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):
        return nn.Dense(CLASSES)(images.reshape(len(images), -1))


class InMemory:
    """A source of encoded images, as `EncodedSplit` reads them."""

    remedy = fingerprint = ""

    def __init__(self, records):
        self._records = records

    def __len__(self):
        return len(self._records)

    def __getitem__(self, index):
        return self._records[index]

    def name(self, index):
        return str(index)


@pytest.fixture(scope="module")
def splits():
    """The same examples as an encoded split, and in memory, decoded from its JPEGs."""
    from PIL import Image

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (COUNT, SIDE, SIDE, 3), np.uint8)
    labels = rng.integers(0, CLASSES, COUNT).tolist()
    records = [
        Record(encode(Image.fromarray(image)), label)
        for image, label in zip(pixels, labels, strict=True)
    ]
    encoded = EncodedSplit(InMemory(records), SIDE, CLASSES)
    return encoded, Split(*encoded.load(np.arange(COUNT))[:2])


def dataset_of(split):
    names = tuple(map(str, range(CLASSES)))
    return Dataset("random", split, split, names, np.float32([0.4] * 3), np.float32([0.3] * 3))


def expected(variables, split):
    """The loss, and all errors in percent, computed image by image."""
    kernel, bias = (np.float64(variables["params"]["Dense_0"][k]) for k in ("kernel", "bias"))
    prefixes = ("", "ten_crop_", "flip_")
    wrong = {f"{prefix}{name}": [] for prefix in prefixes for name in ("error", "top5_error")}
    losses = []
    for image, label in zip(split.images, split.labels, strict=True):
        crops = by_hand((image / np.float64(255) - np.float32(0.4)) / np.float32(0.3))
        probabilities = softmax(crops.reshape(10, -1) @ kernel + bias)
        losses.append(-np.log(probabilities[4][label]))
        views = probabilities[4], probabilities.mean(0), probabilities[[4, 9]].mean(0)
        for prefix, scores in zip(prefixes, views, strict=True):
            ranked = np.argsort(-scores)
            wrong[f"{prefix}error"].append(ranked[0] != label)
            wrong[f"{prefix}top5_error"].append(label not in ranked[:5])
    return {name: 100 * np.mean(values) for name, values in wrong.items()} | {
        "loss": np.mean(losses)
    }


@pytest.mark.parametrize("batch_size", [1, 8, 23, 500])
@pytest.mark.parametrize("kind", ["encoded", "in memory"])
def test_both_ways_are_exact_at_any_batch_size(splits, kind, batch_size):
    split = splits[kind == "in memory"]
    variables = Linear().init(jax.random.key(1), jnp.zeros((1, CROP, CROP, 3)))
    mesh, views = make_mesh(default_config()), Views(CROP, ten=True, flip=True)
    evaluator = make_evaluator(Linear(), dataset_of(split), batch_size, mesh, None, views)
    for _ in range(2):  # the second evaluation does not depend on the first
        found = evaluator(variables)
        wanted = expected(variables, splits[1])
        assert found.keys() == wanted.keys()
        for name in wanted:
            assert found[name] == pytest.approx(wanted[name], rel=1e-5), name  # float32
    assert len({found[name] for name in ("error", "ten_crop_error", "flip_error")}) == 3
