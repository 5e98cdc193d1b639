"""Tests of `observe` and `outline`: records of routers in order, for any batch size."""

from functools import partial

import flax.linen as nn
import jax
import numpy as np
import pytest
import small_networks

from multipath_jax.errors import UserError
from multipath_jax.gates import observe, outline
from multipath_jax.layers import CrossConnect, OneToMany, Parallel


@pytest.mark.parametrize("kind", ["CC", "CP"])
def test_the_outline_is_that_of_the_layers_in_their_order(kind):
    found = outline(small_networks.network(kind), (8, 8, 2))
    assert found.routers == ("router_1", "router_2")
    assert found.gates == ((1, 2), (2, 2))
    assert found.stacks == (("stem",), ("stage_1",), ("dense_1",))
    order = [found.calls.index(path) for path in (("stem",), ("stage_1",), ("dense_1",))]
    assert order == sorted(order)


def test_routers_within_modules_are_found_in_the_order_of_their_calls():
    class Inner(nn.Module):
        @nn.compact
        def __call__(self, x):
            xs = CrossConnect(2, name="z_first")(x[None])
            return CrossConnect(3, name="a_second")(xs)

    class Outer(nn.Module):
        @nn.compact
        def __call__(self, images, train=False):
            x = nn.Conv(4, (3, 3), name="conv")(images)
            x = Inner(name="inner")(x).mean(0)
            x = OneToMany(2, name="alone")(nn.relu(x)).mean((0, 2, 3))
            return nn.Dense(3, name="head")(x)

    trained = small_networks.initialized(Outer(), channels=2)
    found = outline(trained, (8, 8, 2))
    assert found.routers == ("inner/z_first", "inner/a_second", "alone")
    assert found.stacks == (("conv",), (), (), ("head",))
    routers = observe(trained, small_networks.images()).routers
    assert [router.gates.shape for router in routers] == [(1, 11, 2), (2, 11, 3), (1, 11, 2)]


def test_a_router_in_parallel_paths_is_refused():
    class Outer(nn.Module):
        @nn.compact
        def __call__(self, images, train=False):
            xs = OneToMany(3, name="first")(images)
            xs = Parallel(OneToMany(2))(xs)
            return nn.Dense(3, name="head")(xs.mean((0, 1, 3, 4)))

    trained = small_networks.initialized(Outer(), channels=2)
    with pytest.raises(UserError, match=r"the router OneToMany_0 is inside of layers.Parallel"):
        observe(trained, small_networks.images())


@pytest.mark.parametrize("batch_size", [4, 250])
def test_every_image_is_observed_once_at_any_batch_size(batch_size):
    trained, images = small_networks.network(paths=3), small_networks.images()
    found = observe(trained, images, batch_size)
    apply = jax.jit(partial(trained.model.apply, train=False, mutable=["intermediates"]))
    logits, recorded = apply(trained.variables, trained.prepare(images))
    # The rounding of a convolution depends on the batch size.
    np.testing.assert_allclose(found.logits, logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.probabilities.sum(1), 1, rtol=1e-5)
    assert [router.name for router in found.routers] == ["router_1", "router_2"]
    for router in found.routers:
        records = recorded["intermediates"][router.name]
        for key in ("gates", "relevance", "input_strength", "output_strength"):
            got = getattr(router, key)
            np.testing.assert_allclose(got, records[key][0], rtol=1e-4, atol=1e-5)
    assert found.routers[1].gates.shape == (3, 11, 3)
    assert found.routers[1].gates.std(1).min() > 1e-3  # images differ, so a wrong order would fail


def test_vectors_have_the_gates_of_an_image_in_a_row():
    router = observe(small_networks.network(paths=3), small_networks.images()).routers[1]
    assert router.vectors.shape == (11, 9)
    np.testing.assert_array_equal(router.vectors[4, 5], router.gates[1, 4, 2])


def test_a_network_without_routers_gives_logits_only():
    found = observe(small_networks.without_routers(), small_networks.images())
    assert found.routers == ()
    assert found.logits.shape == (11, 3)
