"""Tests of `Gathered`: outputs equal to those of the masked network, and the reported work."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multipath_jax.errors import UserError
from multipath_jax.layers import Choice, ConvNorm, ConvStage, CrossConnect, DenseLayer, Share
from multipath_jax.models.gathered import Gathered, capacity
from multipath_jax.models.multipath import MultiPath

N, CLASSES = 3, 4
IMAGES = np.random.default_rng(0).normal(size=(13, 8, 8, 2)).astype(np.float32)
IMAGES *= np.linspace(0.2, 3, 13, dtype=np.float32)[:, None, None, None]
# In float32, the order of summation in a convolution depends on the batch size.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def network(k, stem=False, **choice):
    """A network with two routers, larger gate weights, and a bias for choices as after training."""
    how = {"k": k, "choice": Choice(**choice)}
    model = MultiPath(
        (
            *((ConvNorm(3, name="stem"),) if stem else ()),
            CrossConnect(N, name="router_1", **how),
            ConvStage((4,), pool=True, name="stage"),
            CrossConnect(N, name="router_2", **how),
            DenseLayer(5, norm=True, name="dense_1"),
            DenseLayer(CLASSES, relu=False, name="dense_2"),
        )
    )
    variables = dict(jax.jit(model.init)(jax.random.key(0), IMAGES))
    for name in ("router_1", "router_2"):
        variables["params"][name]["gate"]["w2"] *= 4
    if "routing" in variables:
        variables["routing"]["router_2"]["chooser"]["bias"] += jnp.float32([0.3, -0.2, 0])
    return model, variables


@pytest.mark.parametrize(
    ("k", "choice"),
    [
        (1, {}),
        pytest.param(1, {"kept": "factor"}, marks=pytest.mark.slow),
        (2, {"estimator": "gumbel"}),
        pytest.param(None, {}, marks=pytest.mark.slow),
        pytest.param(2, {"soft_steps": 1}, marks=pytest.mark.slow),
        (1, {"soft_steps": 1}),
    ],
)
def test_gathered_is_masked(k, choice):
    model, variables = network(k, stem=k == 2, **choice)
    expected = jax.jit(model.apply)(variables, IMAGES)
    gathered = Gathered(model, variables)
    np.testing.assert_allclose(gathered(IMAGES), expected, **CLOSE)
    everywhere = k is None or "soft_steps" in choice
    if k == 1 and not everywhere:
        assert [sum(loads) for loads in gathered.work.loads] == [13, 13]
    elif everywhere:
        assert gathered.work.loads == [[13] * N] * 2
    else:
        assert 13 * k <= sum(gathered.work.loads[1]) <= 13 * N


@pytest.mark.parametrize("k", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_one_image_and_none(k):
    model, variables = network(k)
    gathered = Gathered(model, variables)
    expected = jax.jit(model.apply)(variables, IMAGES)
    for b in (0, 7):
        np.testing.assert_allclose(gathered(IMAGES[b : b + 1])[0], expected[b], **CLOSE)
        assert sum(gathered.work.loads[0]) == k
    assert gathered(IMAGES[:0]).shape == (0, CLASSES)
    # More images than in earlier calls; some of the programs are compiled already.
    np.testing.assert_allclose(gathered(IMAGES[:9]), expected[:9], **CLOSE)
    np.testing.assert_allclose(gathered(IMAGES[4:]), expected[4:], **CLOSE)


def test_all_images_on_one_path():
    model, variables = network(1)
    for name in ("router_1", "router_2"):
        variables["routing"][name]["chooser"]["bias"] += jnp.float32([0, 100, 0])
    gathered = Gathered(model, variables)
    np.testing.assert_allclose(gathered(IMAGES), jax.jit(model.apply)(variables, IMAGES), **CLOSE)
    assert gathered.work.loads == [[0, 13, 0]] * 2
    # Stage and dense layers process 14 = capacity(13) rows; multiply-adds of gates are added.
    stage = 8 * 8 * 9 * 2 * 4
    dense = 4 * 4 * 4 * 5 + 5 * CLASSES
    gates = 13 * (2 * 16 + 16 * N) + 14 * (4 * 16 + 16 * N)
    assert gathered.work.multiply_adds == 14 * (stage + dense) + gates


def test_a_capacity_is_enough_and_not_too_much():
    counts = np.arange(1, 3000)
    sizes = np.array([capacity(int(count)) for count in counts])
    assert (sizes >= counts).all()
    assert (sizes <= 1.25 * counts).all()
    assert len({*sizes}) < 50
    assert capacity(0) == 0


def test_programs_are_compiled_once():
    model, variables = network(1)
    gathered = Gathered(model, variables)
    gathered(IMAGES)
    compiled = len(gathered._programs)
    gathered(IMAGES[::-1].copy())
    assert len(gathered._programs) == compiled


def test_other_routers_are_refused():
    model = MultiPath((Share(2, name="share"), DenseLayer(3, name="dense")))
    with pytest.raises(UserError, match="routers are all CrossConnect"):
        Gathered(model, {})


def test_other_networks_are_refused():
    with pytest.raises(UserError, match="networks that are a MultiPath, not DenseLayer"):
        Gathered(DenseLayer(3, name="dense"), {})
