"""Tests that all architectures whose files can be read have the same logits as in PyTorch."""

from functools import partial

import definitions
import numpy as np
import pytest
import safetensors.numpy
from exact import check, images

from multipath_jax import pretrained
from multipath_jax.models import imagenet_resnet, vgg
from multipath_jax.weights import StateDict

# The structures of torchvision's networks, as arguments for `definitions`, by our names.
RESNETS = {
    "ResNet18": {"blocks": (2, 2, 2, 2)},
    "ResNet34": {"blocks": (3, 4, 6, 3)},
    "ResNet50": {"blocks": (3, 4, 6, 3), "bottleneck": True},
    "ResNet101": {"blocks": (3, 4, 23, 3), "bottleneck": True},
    "ResNet152": {"blocks": (3, 8, 36, 3), "bottleneck": True},
    "WideResNet50-2": {"blocks": (3, 4, 6, 3), "bottleneck": True, "widen": 2},
    "ResNeXt50-2-64": {"blocks": (3, 4, 6, 3), "bottleneck": True, "widen": 2, "groups": 2},
}
VGGS = {
    "VGG11-BN": (1, 1, 2, 2, 2),
    "VGG13-BN": (2, 2, 2, 2, 2),
    "VGG16-BN": (2, 2, 3, 3, 3),
    "VGG19-BN": (2, 2, 4, 4, 4),
}
QUICK = ("ResNet18",)
BASE, WIDTHS, DENSE = 8, (4, 8, 8, 12, 12), 16


@pytest.fixture
def narrow(monkeypatch):
    """Reduces the channels of the networks for ImageNet."""
    monkeypatch.setattr(imagenet_resnet, "STEM", BASE)
    monkeypatch.setattr(imagenet_resnet, "STACKS", tuple(BASE * 2**i for i in range(4)))
    monkeypatch.setattr(vgg, "FEATURES", WIDTHS)
    monkeypatch.setattr(vgg, "TORCHVISION_DENSE", DENSE)


def compared(define, name, size, tmp_path):
    """Compares network and definition for a file of random arrays, with counts that are unused."""
    x = images(size)
    arrays = definitions.drawn(define, x)
    file = tmp_path / "model.safetensors"
    counts = {"bn1.num_batches_tracked": np.array(7), "features.1.num_batches_tracked": np.array(7)}
    safetensors.numpy.save_file(arrays | counts, file)
    check(file, name, arrays, x, definitions.run(define, arrays, x))


@pytest.mark.usefixtures("narrow", "x64")
@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in RESNETS]
)
def test_torchvision_s_resnets(name, tmp_path):
    define = partial(definitions.resnet, **RESNETS[name], base=BASE)
    compared(define, name, 65, tmp_path)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("option", ["A", pytest.param("B", marks=pytest.mark.slow)])
def test_resnets_for_cifar(option, tmp_path):
    compared(partial(definitions.cifar_resnet, option=option), "ResNet20", 32, tmp_path)


@pytest.mark.usefixtures("narrow", "x64")
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("VGG11-BN", 64),
        pytest.param("VGG13-BN", 64, marks=pytest.mark.slow),
        pytest.param("VGG16-BN", 224, marks=pytest.mark.slow),
        pytest.param("VGG19-BN", 64, marks=pytest.mark.slow),
    ],
)
def test_torchvision_s_vggs(name, size, tmp_path):
    define = partial(definitions.vgg_bn, convs=VGGS[name], widths=WIDTHS, dense=DENSE)
    compared(define, name, size, tmp_path)


@pytest.mark.parametrize("name", [*RESNETS, *VGGS])
def test_names_and_shapes_of_the_whole_networks(name, monkeypatch):
    monkeypatch.setattr(
        definitions.Net, "_draw", lambda net, shape, *_: np.broadcast_to(np.float32(0), shape)
    )
    define = definitions.resnet if name in RESNETS else definitions.vgg_bn
    options = RESNETS.get(name) or {"convs": VGGS[name]}
    arrays = definitions.drawn(partial(define, **options, classes=1000), images(64, count=1))
    origin = pretrained.origin_of(StateDict("file", arrays), "file", name)
    assert origin.num_classes == 1000
