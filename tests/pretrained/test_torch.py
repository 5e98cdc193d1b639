"""Tests with PyTorch's networks, if PyTorch, torchvision and timm are installed."""

import copy
import importlib

import numpy as np
import pytest
from exact import check, images, named

import multipath_jax as mp
from multipath_jax.errors import UserError
from multipath_jax.weights import ARCHITECTURES, read

torch = pytest.importorskip("torch")
slow = pytest.mark.slow
TIMM_DENSE = {
    "pre_logits.fc1": "classifier.0",
    "pre_logits.fc2": "classifier.3",
    "head.fc": "classifier.6",
}


def library(name):
    """Imports torchvision or timm. Compiled operators may not load, but models do not need them."""
    try:
        return importlib.import_module(name)
    except ImportError:
        pytest.skip(f"{name} is not installed")
    except RuntimeError:
        _define_operators()
        return importlib.import_module(name)


def _define_operators():
    operators = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.operators = operators  # keeps the definitions alive


def made(name, kind):
    """A network of torchvision or timm, by our name."""
    if name == "ResNeXt50-2-64":
        options = {"groups": 2, "width_per_group": 64}
        resnet = library("torchvision").models.resnet
        return resnet.ResNet(resnet.Bottleneck, [3, 4, 6, 3], 10, **options)
    theirs = {ours: theirs for theirs, ours in ARCHITECTURES.items()}[name]
    if kind == "timm":
        return library("timm").create_model(theirs, num_classes=10)
    return library("torchvision").models.get_model(theirs, weights=None, num_classes=10)


def randomized(network):
    """Draws BatchNorm's parameters and statistics at random, and disables dropout."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                torch.nn.init.uniform_(tensor, 0.7, 1.3, generator=generator)
            for tensor in (module.bias, module.running_mean):
                torch.nn.init.normal_(tensor, 0, 0.2, generator=generator)
        elif isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return network


def outputs(network, x):
    """As `definitions.run`, for a network of PyTorch."""
    training = copy.deepcopy(network).double().train()
    with torch.no_grad():
        logits = copy.deepcopy(network).double().eval()(torch.from_numpy(x).double())
        in_training = training(torch.from_numpy(x).double())
    state = {key: value.numpy() for key, value in training.state_dict().items()}
    statistics = {key: value for key, value in state.items() if "running_" in key}
    return logits.numpy(), in_training.numpy(), statistics


def floats(network):
    return {
        key: value.detach().numpy()
        for key, value in network.state_dict().items()
        if value.is_floating_point()
    }


def torchvision_names(arrays):
    """The written arrays: timm's VGG has other names, and convolutions in place of dense layers."""
    found = {}
    for key, value in arrays.items():
        layer, _, leaf = key.rpartition(".")
        if layer in TIMM_DENSE:
            key = f"{TIMM_DENSE[layer]}.{leaf}"
            value = value.reshape(len(value), -1) if leaf == "weight" else value
        found[key] = value
    return found


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", ["torchvision", "timm"])
@pytest.mark.parametrize(
    "name",
    [
        "ResNet18",
        *(
            pytest.param(name, marks=slow)
            for name in (
                "ResNet34",
                "ResNet50",
                "ResNet101",
                "ResNet152",
                "WideResNet50-2",
                "ResNeXt50-2-64",
                "VGG11-BN",
                "VGG13-BN",
                "VGG16-BN",
                "VGG19-BN",
            )
        ),
    ],
)
def test_the_libraries_networks(name, kind, tmp_path):
    x = images(64)
    network = randomized(made(name, kind))
    file = tmp_path / "model.pth"
    torch.save(network.state_dict(), file)
    check(file, name, torchvision_names(floats(network)), x, outputs(network, x))


@pytest.mark.parametrize("suffix", ["pth", "pt", "th", "bin"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_state_dicts_of_every_suffix(suffix, wrapped, tmp_path):
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    state = network.state_dict()
    if wrapped:
        state = {"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 9}
    file = tmp_path / f"model.{suffix}"
    torch.save(state, file)
    found = read("--from", file).arrays
    assert found.keys() == floats(network).keys()
    for key, value in floats(network).items():
        np.testing.assert_array_equal(found[key], value)


@pytest.mark.parametrize("kind", ["network", "list", "truncated", "text"])
def test_what_is_no_state_dict_is_refused(kind, tmp_path):
    file = tmp_path / "model.pth"
    network = torch.nn.Conv2d(3, 4, 3)
    torch.save({"network": network, "list": [network.weight]}.get(kind, network.state_dict()), file)
    content = file.read_bytes()
    if kind == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif kind == "text":
        file.write_text("weights")
    with pytest.raises(UserError, match=r"no state dict|no whole file"):
        read("--from", file)


def test_pytorch_takes_what_is_saved(tmp_path):
    network = made("ResNet18", "torchvision")
    torch.save(network.state_dict(), tmp_path / "model.pth")
    _, variables = mp.load_weights(tmp_path / "model.pth", "ResNet18")
    state = {key: torch.from_numpy(value) for key, value in named(variables).items()}
    again = made("ResNet18", "torchvision")
    again.load_state_dict(state)
    for key, value in floats(network).items():
        np.testing.assert_array_equal(floats(again)[key], value)
