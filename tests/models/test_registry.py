"""Tests of the names of networks, and of the errors for unknown names and options."""

import pytest

import multipath_jax
from multipath_jax.errors import UserError


def test_every_listed_name_gives_a_model():
    names = multipath_jax.list_models()
    assert len(set(names)) == len(names)
    assert {"BaseCNN", "WideCNN", "DeepCNN", "BaseCNN-3", "BaseCNN-2-CC", "BaseCNN-4-CP"} <= {
        *names
    }
    for name in names:
        multipath_jax.create_model(name, num_classes=100)


@pytest.mark.parametrize("name", ["BaseCNN", "VGG13", "VGG16", "VGG11-BN", "ResNet20", "ResNet50"])
def test_every_network_with_routers_is_there_without(name):
    """The single-path, unrouted and routed networks have the same layers in the same order."""

    def layers(name):
        return [layer.name for layer in multipath_jax.create_model(name).layers]

    single, unrouted, routed = (layers(name + end) for end in ("", "-3", "-3-CC"))
    assert [layer for layer in unrouted if layer != "share"] == single
    assert [layer for layer in routed if not layer.startswith("router")] == single
    assert unrouted.index("share") == routed.index("router_1")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("BaseCNN-2-CB", {}, "no network 'BaseCNN-2-CB'; did you mean BaseCNN-2-C"),
        ("basecnn", {}, "did you mean .*BaseCNN"),
        ("zzzzzzzz", {}, "list_models"),
        ("BaseCNN-0-CC", {}, "needs at least 1 path and 1 class"),
        ("BaseCNN-2-CC", {"num_classes": 0}, "needs at least 1 path and 1 class"),
        ("BaseCNN-2-CC", {"excution": "grouped"}, "no option 'excution'; it has .*execution"),
        ("BaseCNN-2-CC", {"paths": 3}, "no option 'paths'"),
    ],
)
def test_what_does_not_exist_is_said_in_one_line(name, options, message):
    with pytest.raises(UserError, match=message) as error:
        multipath_jax.create_model(name, **options)
    assert "\n" not in str(error.value)
