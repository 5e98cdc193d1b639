"""ONNX models of all networks of the paper have the same logits in onnxruntime as in JAX."""

import dataclasses
import json
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from command_line import refusal
from exports import of_model

from multipath_jax import create_model, export, to_onnx
from multipath_jax.errors import Failure, UserError
from multipath_jax.models import family_of
from multipath_jax.runs import load_run

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("jax2onnx")

# Options and image shapes of networks; the operations of routers are tested by the digits run.
QUICK = {
    "CapsNet": ({}, (17, 17, 1)),
    "ResNet8": ({"shortcut": "centered"}, (8, 8, 3)),
}
DISCRETE = ("BaseCNN-2-CC", "ResNet8-2-CC", "ResNet18-2-CC")


@pytest.fixture(scope="module")
def run(digits_run):
    return load_run(digits_run, dtype="float32")


def session_of(model):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options)


def test_an_exported_run(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = [f"--workdir={run.workdir}", "--out=digits.onnx", "--format=onnx"]
    assert export.main(argv) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"digits.onnx", "digits.onnx.md"}
    usage = "\n".join(re.findall(r"^    (.*)", capsys.readouterr().out, re.MULTILINE))
    assert "uint8 [b 8 8 1] -> float32 [b 10]" in usage
    card = (tmp_path / "digits.onnx.md").read_text()
    assert "library_name: onnx\n" in card
    assert usage in card
    images = run.dataset.test.images
    for count in (1, 5):
        names = {"images": images[:count]}
        exec(usage, names)
        expected = np.asarray(run.logits(images[:count]))
        assert names["logits"].dtype == np.float32
        assert to_onnx.relative_difference(names["logits"], expected) <= to_onnx.TOLERANCE
    described = names["network"].get_modelmeta().custom_metadata_map
    assert json.loads(described["class_names"]) == list(run.description.class_names)


def check(run, model, shape):
    """Asserts that a network's ONNX model is valid, takes any batch, and has the logits of JAX."""
    other = of_model(run, model, shape)
    found = to_onnx.onnx_model(other)
    onnx.checker.check_model(onnx.load_from_string(found), full_check=True)
    session = session_of(found)
    assert [i.shape for i in session.get_inputs()] == [["b", *shape]]
    images = np.random.default_rng(1).integers(0, 256, (3, *shape), np.uint8)
    expected = np.asarray(other.logits(images))
    assert expected.std(axis=0).max() > 1e-3  # logits differ between images
    for count in (1, 3):
        (logits,) = session.run(None, {"images": images[:count]})
        assert to_onnx.relative_difference(logits, expected[:count]) <= to_onnx.TOLERANCE


@pytest.mark.parametrize("name", QUICK)
def test_networks(run, name):
    options, shape = QUICK[name]
    check(run, create_model(name, **options), shape)


@pytest.mark.slow
@networks.each()
def test_every_network(run, name):
    # Networks have the same operations for images of half the size.
    height, width, channels = family_of(name).image_shape
    shape = (height // 2, width // 2, channels) if height > 32 else (height, width, channels)
    check(run, networks.create_small(name), shape)


@pytest.mark.slow
@pytest.mark.parametrize("name", DISCRETE)
def test_discrete_networks(run, name):
    check(run, create_model(name, k=1), (32, 32, 3))


class Pool(nn.Module):
    """A network with max-pooling over windows with padding."""

    @nn.compact
    def __call__(self, images, train=False):
        y = nn.max_pool(images, (3, 3), (2, 2), ((1, 1), (0, 1)))
        return nn.Dense(10)(y.max((1, 2)) - y.mean((1, 2)))


def test_a_pool_with_padding(run):
    check(run, Pool(), (8, 9, 2))


class Unknown(nn.Module):
    """A network with an operation that ONNX lacks."""

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Dense(10)(images.mean((1, 2)))
        return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


class Booleans(nn.Module):
    """A network with an operation that ONNX has, but onnxruntime lacks."""

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Dense(10)(images.mean((1, 2)))
        return jnp.where(x > 0, x > 1, x > 2).astype(jnp.float32)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Unknown(), "jax2onnx cannot convert BaseCNN-2-CC (NotImplementedError: [converter] No "),
        (Booleans(), "onnxruntime cannot run BaseCNN-2-CC (NotImplemented: [ONNXRuntimeError]"),
    ],
    ids=["jax2onnx", "onnxruntime"],
)
def test_what_cannot_be_carried_is_refused(run, model, reason, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(export, "load_run", lambda *_, **__: of_model(run, model, (8, 8, 1)))
    argv = [f"--workdir={run.workdir}", f"--out={tmp_path}/x.onnx", "--format=onnx"]
    said = refusal(export, argv, capsys, monkeypatch)
    assert said.startswith(reason)
    assert said.endswith("; use --format=jax")
    assert list(tmp_path.iterdir()) == []


def test_other_logits_are_a_failure(run, monkeypatch):
    def reversed_paths(x, axis):
        return to_onnx._unstack(x, axis)[::-1]

    monkeypatch.setitem(to_onnx._REPLACED, "unstack", reversed_paths)
    with pytest.raises(Failure, match=r"^the logits of BaseCNN-2-CC .* of the largest, more than"):
        to_onnx.onnx_model(run)


def test_flax_and_jax_are_as_before(run):
    before = nn.max_pool, nn.Conv.__call__, jnp.pad, jnp.stack, jax.nn.softmax
    with pytest.raises(UserError):
        to_onnx.onnx_model(of_model(run, Unknown(), (8, 8, 1)))
    assert (nn.max_pool, nn.Conv.__call__, jnp.pad, jnp.stack, jax.nn.softmax) == before
    assert not jax.config.jax_enable_x64


def test_images_of_floats_are_compared_at_their_own_scale(run):
    described = of_model(run, Pool(), (64, 64, 3)).description
    described = dataclasses.replace(described, dtype="float32", mean=described.mean + 9)
    images = to_onnx._random_images(described)
    assert images.dtype == np.float32
    np.testing.assert_allclose(images.mean((0, 1, 2)), described.mean, rtol=0.05)
