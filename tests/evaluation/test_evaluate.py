import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multipath_jax.config.keys import default_config
from multipath_jax.data import Dataset, Split
from multipath_jax.evaluation.evaluate import make_evaluator
from multipath_jax.parallel.devices import make_mesh


class Linear(nn.Module):
    """A network with BatchNorm: batch statistics would mix examples with others and padding."""

    num_classes: int

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.BatchNorm(use_running_average=not train)(images.reshape(len(images), -1))
        return nn.Dense(self.num_classes)(x)


def dataset(classes, examples=37):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (examples, 4, 4, 2), np.uint8)
    labels = rng.integers(0, classes, examples, np.int32)
    names = tuple(map(str, range(classes)))
    statistics = np.float32([0.4, 0.5]), np.float32([0.2, 0.3])
    return Dataset("random", Split(images, labels), Split(images, labels), names, *statistics)


def by_hand(model, variables, data):
    """The expected metrics, computed in NumPy example by example."""
    images = (data.test.images / np.float64(255) - data.mean) / data.std
    kernel, bias = (np.float64(variables["params"]["Dense_0"][k]) for k in ("kernel", "bias"))
    logits = images.reshape(len(images), -1) / np.sqrt(1 + 1e-5) @ kernel + bias
    losses, wrong, wrong5 = [], [], []
    for row, label in zip(logits, data.test.labels, strict=True):
        losses.append(np.log(np.exp(row).sum()) - row[label])
        ranked = np.argsort(-row)
        wrong.append(ranked[0] != label)
        wrong5.append(label not in ranked[:5])
    return {
        "loss": np.mean(losses),
        "error": 100 * np.mean(wrong),
        "top5_error": 100 * np.mean(wrong5),
    }


@pytest.mark.parametrize("batch_size", [1, 8, 36, 37, 500])
def test_every_example_counts_once_at_any_batch_size(batch_size):
    data, model = dataset(classes=12), Linear(12)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 4, 4, 2)))
    found = make_evaluator(model, data, batch_size, make_mesh(default_config()))(variables)
    expected = by_hand(model, variables, data)
    assert found.keys() == expected.keys()
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)  # float32 against float64
    assert found["error"] == pytest.approx(expected["error"], rel=1e-6)
    assert found["top5_error"] == pytest.approx(expected["top5_error"], rel=1e-6)
    assert 0 < found["top5_error"] < found["error"] < 100


@pytest.mark.usefixtures("x64")
def test_64_bits_change_no_measure():
    test_every_example_counts_once_at_any_batch_size(batch_size=8)


def test_no_top5_error_of_five_classes():
    data, model = dataset(classes=5), Linear(5)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 4, 4, 2)))
    found = make_evaluator(model, data, 8, make_mesh(default_config()))(variables)
    assert found.keys() == {"loss", "error"}


def test_another_split_can_be_measured():
    data, model = dataset(classes=12), Linear(12)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 4, 4, 2)))
    mesh = make_mesh(default_config())
    answers = model.apply(variables, (data.test.images / 255 - data.mean) / data.std).argmax(-1)
    right = Split(data.test.images, np.asarray(answers, np.int32))
    assert make_evaluator(model, data, 8, mesh, right)(variables)["error"] == 0
