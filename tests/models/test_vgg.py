"""Tests of Section 7's VGG13, and of VGG16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multipath_jax import create_model

SMALL = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
VGG13 = [
    (3, 32),
    (32, 32),
    (32, 64),
    (64, 64),
    (64, 128),
    (128, 128),
    (128, 256),
    *[(256, 256)] * 3,
]


def shapes(name, size, classes=10):
    model = create_model(name, classes)
    images = jnp.zeros((1, size, size, 3))
    return jax.eval_shape(lambda: model.init(jax.random.key(0), images))["params"]


def count(*args):
    return sum(leaf.size for leaf in jax.tree.leaves(shapes(*args)))


def of_vgg13(size, classes):
    """The parameters of convolutions with bias and BatchNorm, and of dense layers."""
    flat = (size // 32) ** 2 * 256
    convs = sum(9 * c * f + 3 * f for c, f in VGG13)
    norms = 2 * (256 + 256)  # BatchNorm of the hidden dense layers
    return convs + norms + sum(c * f + f for c, f in ((flat, 256), (256, 256), (256, classes)))


def of_gate(c, n, d=16):
    return c * d + d + d * n + n


@pytest.mark.parametrize("size", [32, 224])
def test_vgg13_is_section_7_s(size):
    assert count("VGG13", size, 100) == of_vgg13(size, 100)
    flat = shapes("VGG13", size)["dense_1"]["dense"]["kernel"].shape[0]
    assert flat == (size // 32) ** 2 * 256  # 7 x 7 x 256 for the paper's 224 x 224


@pytest.mark.parametrize("x", [1, 3])
def test_cross_connections_add_only_their_gates(x):
    seen = (32, 64, 128, 256, 256, 256)  # channels after five poolings and the first dense layer
    gates = of_gate(3, x) + x * sum(of_gate(c, x) for c in seen)
    assert count(f"VGG13-{x}-CC", 224, 100) == x * of_vgg13(224, 100) + gates


@pytest.mark.parametrize("x", [1, 3])
def test_routers_are_numbered_as_in_section_7(x):
    model = create_model(f"VGG13-{x}-CC", 4)

    def run():
        variables = model.init(jax.random.key(0), SMALL)
        variables = {key: variables[key] for key in ("params", "batch_stats")}
        return variables["params"], *model.apply(variables, SMALL, mutable=["intermediates"])

    params, logits, recorded = jax.eval_shape(run)
    assert logits.shape == (2, 4)
    channels = {1: 3, 2: 32, 3: 64, 4: 128, 5: 256, 6: 256, 7: 256}
    assert set(recorded["intermediates"]) == {f"router_{number}" for number in channels}
    for number, c in channels.items():
        m = 1 if number == 1 else x
        (gates,) = recorded["intermediates"][f"router_{number}"]["gates"]
        assert gates.shape == (m, 2, x)
        assert params[f"router_{number}"]["gate"]["w1"].shape == (m, c, 16)


def test_routers_follow_the_poolings():
    """The output of each router has the size of the output of the pooling before it."""
    model = create_model("VGG13-2-CC")
    images = jnp.zeros((1, 224, 224, 3))
    _, variables = jax.eval_shape(
        lambda: model.init_with_output(jax.random.key(0), images, capture_intermediates=True)
    )
    recorded = variables["intermediates"]
    outputs = [recorded[f"router_{number}"]["__call__"][0].shape for number in range(1, 8)]
    sides = [(224, 3), (112, 32), (56, 64), (28, 128), (14, 256), (7, 256)]
    assert outputs == [(2, 1, side, side, c) for side, c in sides] + [(2, 1, 256)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["VGG13-2-CC", "VGG16"])
def test_it_runs(name):
    model = create_model(name, 4)
    logits, _ = jax.jit(lambda: model.init_with_output(jax.random.key(0), SMALL))()
    assert logits.shape == (2, 4)
    assert not np.allclose(logits[0], logits[1])


def test_images_too_small_for_five_poolings_are_refused():
    with pytest.raises(ValueError, match="too small to halve"):
        shapes("VGG13", 16)
