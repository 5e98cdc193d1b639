"""Small networks, registered by name, for runs on several data sets."""

import contextlib

import pytest

from multipath_jax.layers import ConvStage, CrossConnect, DenseLayer, Share
from multipath_jax.models import registry
from multipath_jax.models.family import Family
from multipath_jax.models.multipath import MultiPath


def small(num_classes, *, paths):
    """Two routers, a convolution with the package's BatchNorm, and a dense layer."""
    stage, dense = layers(num_classes)
    first, second = (CrossConnect(paths, name=f"router_{number}") for number in (1, 2))
    return MultiPath((first, stage, second, dense))


def unrouted(num_classes, *, paths=1):
    """The network `small` without routers."""
    return MultiPath((Share(paths, name="share"), *layers(num_classes)))


def layers(num_classes):
    return ConvStage((3,), name="stage"), DenseLayer(num_classes, relu=False, name="dense")


@contextlib.contextmanager
def small_by_name():
    """Context manager: registers the networks ``Small-X-CC``, ``Small-X`` and ``Small``."""
    families = (
        Family(r"Small-(?P<paths>\d+)-CC", small, (), discrete=True),
        Family(r"Small-(?P<paths>\d+)", unrouted, ()),
        Family("Small", unrouted, ()),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "FAMILIES", (*registry.FAMILIES, *families))
        yield
