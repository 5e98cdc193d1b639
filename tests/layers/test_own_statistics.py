"""Separate BatchNorm statistics for each data set, in shared layers."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from multipath_jax.layers import (
    Choice,
    ConvStage,
    CrossConnect,
    DenseLayer,
    FromSets,
    OwnStatistics,
    batch_norm,
)
from multipath_jax.layers.own_statistics import COLLECTION, of_set
from multipath_jax.models.multipath import MultiPath

KEY = jax.random.key(0)
B, N, SETS = 9, 2, 3
NUMBERS = jnp.arange(B) % 2  # none is of the third data set
IMAGES = jax.random.normal(KEY, (B, 6, 6, 2)) * (1 + NUMBERS[:, None, None, None])
STATE = [COLLECTION, "batch_stats", "routing", "intermediates", "losses"]


class Norm(nn.Module):
    """A network of one BatchNorm."""

    @nn.compact
    def __call__(self, x, train=False):
        return batch_norm(train, jnp.float32)(x)


def network(k):
    how = {"k": k, "choice": Choice(bias_rate=0.0, estimator="none", kept="factor")}
    return MultiPath(
        (
            CrossConnect(N, name="router_1", **how),
            ConvStage((3,), name="stage"),
            CrossConnect(N, name="router_2", **how),
            DenseLayer(4, relu=False, norm=True, name="dense"),
        )
    )


def made(model):
    """Returns the network in `OwnStatistics`, and random variables instead of initial ones."""
    own, rng = OwnStatistics(model, SETS), np.random.default_rng(0)
    shapes = dict(jax.eval_shape(own.init, KEY, IMAGES))
    shapes.pop("intermediates", None)

    def of_shape(leaf):
        drawn = rng.uniform(0.1, 0.9, leaf.shape).astype(np.float32)
        return jnp.asarray(drawn if leaf.dtype == np.float32 else np.zeros(leaf.shape, leaf.dtype))

    return own, jax.tree.map(of_shape, shapes)


def test_every_image_is_normalized_with_those_of_its_data_set():
    own, variables = made(Norm())
    found, after = own.apply(variables, FromSets(IMAGES, NUMBERS), train=True, mutable=STATE)
    params, before = jax.device_get((variables["params"]["norm"], variables[COLLECTION]["norm"]))
    kept = {key: np.array(value) for key, value in before.items()}
    for number in (0, 1):
        x = np.asarray(IMAGES)[number == NUMBERS]
        mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
        expected = (x - mean) / np.sqrt(variance + 1e-5) * params["scale"] + params["bias"]
        # The variance is computed in one pass, in float32.
        np.testing.assert_allclose(found[number == NUMBERS], expected, rtol=1e-4, atol=1e-5)
        kept["mean"][number] = 0.9 * kept["mean"][number] + 0.1 * mean
        kept["var"][number] = 0.9 * kept["var"][number] + 0.1 * variance
    for key, expected in kept.items():  # unchanged for the third data set
        np.testing.assert_allclose(after[COLLECTION]["norm"][key], expected, rtol=1e-5)


def test_only_the_statistics_are_not_shared():
    model = network(k=1)
    _, variables = made(model)
    shapes = jax.eval_shape(model.init, KEY, IMAGES)
    assert jax.tree.map(jnp.shape, variables["params"]) == jax.tree.map(
        lambda leaf: leaf.shape, shapes["params"]
    )
    own = traverse_util.flatten_dict(variables[COLLECTION])
    for key, leaf in traverse_util.flatten_dict(shapes["batch_stats"]).items():
        assert own.pop(key).shape == (*leaf.shape[:-1], SETS, leaf.shape[-1])
    assert not own
    assert "batch_stats" not in variables


@pytest.mark.parametrize(("k", "execution"), [(None, "unrolled"), (1, "grouped")])
def test_images_of_other_data_sets_change_nothing(k, execution):
    """Images of other data sets affect neither the logits nor the statistics of a data set."""
    own, variables = made(network(k).clone(execution=execution))
    run = jax.jit(partial(own.apply, train=True, mutable=STATE))
    others = jnp.where((NUMBERS == 1)[:, None, None, None], 3 * IMAGES[::-1] + 1, IMAGES)
    before, after = (run(variables, FromSets(images, NUMBERS)) for images in (IMAGES, others))
    np.testing.assert_array_equal(before[0][NUMBERS == 0], after[0][NUMBERS == 0])
    assert np.abs(before[0] - after[0])[NUMBERS == 1].min() > 1e-3
    for one, two in zip(*(jax.tree.leaves(x[1][COLLECTION]) for x in (before, after)), strict=True):
        np.testing.assert_array_equal(one[..., 0, :], two[..., 0, :])
        assert np.any(one[..., 1, :] != two[..., 1, :])


@pytest.mark.parametrize("k", [None, 1])
def test_a_network_for_one_data_set_is_a_part(k):
    model = network(k)
    own, variables = made(model)
    together = jax.jit(partial(own.apply, train=False))(variables, FromSets(IMAGES, NUMBERS))
    for number in (0, 1):
        alone = of_set(variables, number)
        assert alone.keys() == variables.keys() - {COLLECTION} | {"batch_stats"}
        images = IMAGES[number == NUMBERS]
        expected, found = (
            jax.jit(partial(m.apply, train=False))(alone, images) for m in (model, own)
        )
        # Different programs round differently in float32.
        np.testing.assert_allclose(together[number == NUMBERS], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(found, expected)


def test_variables_without_own_statistics_stay_as_they_are():
    variables = {"params": {"a": jnp.ones(3)}, "batch_stats": {"norm": {"mean": jnp.ones(3)}}}
    assert of_set(variables, 1) is variables


def test_statistics_of_other_layers_are_kept():
    variables = {COLLECTION: {"a": jnp.ones((2, 3))}, "batch_stats": {"b": jnp.ones(4)}}
    found = of_set(variables, 1)
    assert jax.tree.map(jnp.shape, found) == {"batch_stats": {"a": (3,), "b": (4,)}}
