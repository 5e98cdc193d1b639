"""Tests of reading files of weights from different places, and of writing them."""

import json

import fsspec
import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from flax.traverse_util import flatten_dict

import multipath_jax as mp
from multipath_jax.errors import UserError
from multipath_jax.weights import is_weights, read, to_file


def same(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value)


@pytest.mark.parametrize("place", ["file", "folder", "address", "address of a folder"])
def test_from_anywhere(place, file, arrays, tmp_path):
    content = file.read_bytes()
    if place == "file":
        source = file
    elif place == "folder":
        source = tmp_path
        (tmp_path / "model.safetensors").write_bytes(content)
    else:
        fsspec.filesystem("memory").pipe_file("/hub/model.safetensors", content)
        source = "memory://hub" + "/model.safetensors" * (place == "address")
    assert is_weights(source)
    same(read("--from", source).arrays, arrays)


def test_a_folder_of_the_hub(file, tmp_path):
    """The folder has the format that timm writes."""
    (tmp_path / "model.safetensors").write_bytes(file.read_bytes())
    config = {
        "architecture": "resnet18",
        "num_classes": 3,
        "pretrained_cfg": {
            "mean": [0.5, 0.25, 0],
            "std": [1, 2, 3],
            "label_names": ["a", "b", "c"],
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = read("--from", tmp_path)
    assert (found.model, found.class_names) == ("ResNet18", ("a", "b", "c"))
    assert (found.mean, found.std) == ((0.5, 0.25, 0.0), (1.0, 2.0, 3.0))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="is no config of a network"):
        read("--from", tmp_path)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers(prefix, arrays, tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({prefix + key: value for key, value in arrays.items()}, path)
    same(read("--from", path).arrays, arrays)


def test_types(tmp_path):
    path = tmp_path / "model.safetensors"
    values = np.float32([0.5, -2, 3])
    arrays = {name: values.astype(name) for name in (np.float16, ml_dtypes.bfloat16)}
    specs = {
        array.dtype.name: safetensors.TensorSpec(
            dtype=array.dtype.name,
            shape=array.shape,
            data_ptr=array.ctypes.data,
            data_len=array.nbytes,
        )
        for array in arrays.values()
    }
    path.write_bytes(safetensors.serialize(specs))
    found = read("--from", path).arrays
    assert {name: array.dtype.name for name, array in found.items()} == {n: n for n in specs}
    for value in found.values():
        np.testing.assert_array_equal(value.astype(np.float32), values)


def test_scalars_and_small_types_are_kept(tmp_path):
    path = tmp_path / "model.safetensors"
    variables = {("params", "temperature"): np.array(2.0), ("params", "code"): np.int8([1, 2])}
    path.write_bytes(to_file(variables, {}))
    found = read("--from", path).arrays
    assert found["params/temperature"].shape == ()
    assert found["params/code"].dtype == np.int8


def test_an_unsupported_type_is_named(tmp_path):
    path = tmp_path / "model.safetensors"
    header = b'{"w":{"dtype":"F8_E8M0","shape":[2],"data_offsets":[0,2]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"ab")
    with pytest.raises(UserError, match="F8_E8M0"):
        read("--from", path)


def test_a_workdir_is_none(imported, tmp_path):
    assert not is_weights(imported)
    assert not is_weights(tmp_path / "nowhere")


def test_a_run_is_written_in_the_names_that_it_came_with(imported, arrays, tmp_path):
    path = mp.save_weights(imported, tmp_path / "out.safetensors")
    same(safetensors.numpy.load_file(path), arrays)
    found = read("--from", path)
    assert (found.model, found.options) == ("ResNet8", {"shortcut": "centered"})
    assert (found.mean, found.std) == ((0.25,), (0.5,))
    assert found.class_names == tuple("0123456789")
    assert found.image_shape == (8, 8, 1)
    _, variables = mp.load_weights(path)
    expected = mp.load_run(imported).variables
    jax.tree.map(np.testing.assert_array_equal, variables, expected)


def test_a_network_that_nobody_else_has(digits_run, tmp_path):
    path = mp.save_weights(digits_run, tmp_path / "out.safetensors", checkpoint=2)
    assert "params/router_1/gate/w1" in safetensors.numpy.load_file(path)
    _, variables = mp.load_weights(path)
    expected = mp.load_run(digits_run, 2).variables
    jax.tree.map(np.testing.assert_array_equal, variables, expected)


def test_a_run_s_weights(imported):
    _, variables = mp.load_weights(imported)
    expected = mp.load_run(imported).variables
    jax.tree.map(np.testing.assert_array_equal, variables, expected)


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_what_is_no_source(name, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"has no checkpoint, and it is neither a file of weights"):
        mp.load_weights(tmp_path / name, "ResNet18")


def test_fractions_of_the_training_are_no_options_of_weights(imported, tmp_path):
    """A file of a discrete network that was trained with ``soft_share``."""
    network = mp.create_model("BaseCNN-2-CC", 10, k=1)
    variables = jax.jit(network.init)(jax.random.key(0), np.zeros((1, 16, 16, 1)))
    about = {"model": "BaseCNN-2-CC", "options": {"k": 1, "soft_share": 0.3}}
    path = tmp_path / "discrete.safetensors"
    path.write_bytes(to_file(flatten_dict(jax.device_get(dict(variables))), about))
    found, _ = mp.load_weights(path, image_shape=(16, 16, 1))
    assert found == mp.create_model("BaseCNN-2-CC", 10, k=1, soft_steps=0)


def test_what_cannot_be_written(imported, tmp_path):
    (tmp_path / "kept.safetensors").write_text("kept")
    with pytest.raises(UserError, match="exists already"):
        mp.save_weights(imported, tmp_path / "kept.safetensors")
    assert (tmp_path / "kept.safetensors").read_text() == "kept"
    with pytest.raises(UserError, match=r"written as \.safetensors; name it so"):
        mp.save_weights(imported, tmp_path / "out.pth")
    with pytest.raises(UserError, match="has no checkpoint"):
        mp.save_weights(tmp_path, tmp_path / "out.safetensors")
    assert len([*tmp_path.iterdir()]) == 1
