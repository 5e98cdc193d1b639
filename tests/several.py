"""A small network by name for runs on several data sets."""

import contextlib

import pytest

from multipath_jax.layers import ConvStage, CrossConnect, DenseLayer
from multipath_jax.models import registry
from multipath_jax.models.family import Family
from multipath_jax.models.multipath import MultiPath


def small(num_classes, *, paths):
    """Two routers, a convolution with the BatchNorm of the package, and a dense layer."""
    return MultiPath(
        (
            CrossConnect(paths, name="router_1"),
            ConvStage((3,), name="stage"),
            CrossConnect(paths, name="router_2"),
            DenseLayer(num_classes, relu=False, name="dense"),
        )
    )


@contextlib.contextmanager
def small_by_name():
    """The table of networks has ``Small-X-CC``."""
    family = Family(r"Small-(?P<paths>\d+)-CC", small, (), discrete=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "FAMILIES", (*registry.FAMILIES, family))
        yield
