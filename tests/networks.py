"""Small networks that together contain every layer of the paper, for tests of all networks."""

import pytest

from multipath_jax import create_model, list_models

# Names of the networks, and options that reduce the number of repeated blocks.
SMALL = {
    "BaseCNN": {},
    "BaseCNN-3": {},
    "BaseCNN-2-CP": {},
    "BaseCNN-2-CC": {},
    "SEBaseCNN": {},
    "Cr-Stitch2": {},
    "NDDR-CNN2-shortcut": {},
    "BaseCNN-Ensemble": {},
    "CapsNet": {},
    "HighwayNet": {},
    "VGG13-2-CC": {},
    "ResNet8": {},
    "WRN-10-2": {},
    "SEResNet8": {},
    "ResNet8-2-CP": {},
    "ResNet8-2-CC": {},
    "HyperWRN40-2": {},
    "ConvNet-AIG": {"depth": 8},
    "ConvNet-AIG-all": {"depth": 8},
    "SkipNet": {"depth": 8},
    "BlockDrop": {"blocks": 1},
    "ResNet18": {},
    "ResNet50": {},
}


def create_small(name, num_classes=10, **options):
    """Creates a network, with its options from `SMALL` if it has any."""
    return create_model(name, num_classes, **SMALL.get(name, {}), **options)


def each():
    """Parametrizes a test over the small networks; the other networks are marked as slow."""
    slow = [pytest.param(n, marks=pytest.mark.slow) for n in list_models() if n not in SMALL]
    return pytest.mark.parametrize("name", [*SMALL, *slow])
