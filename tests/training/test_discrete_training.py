"""Training of networks with discrete routers: sharded paths, routing statistics, config."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multipath_jax.config.keys import default_config
from multipath_jax.errors import UserError
from multipath_jax.layers import Choice, ConvStage, CrossConnect, DenseLayer
from multipath_jax.models.multipath import MultiPath
from multipath_jax.parallel import placement
from multipath_jax.parallel.devices import make_mesh
from multipath_jax.training.metrics import routing_statistics
from multipath_jax.training.setup import make_model

N, B = 4, 8
IMAGES = np.random.default_rng(0).normal(size=(B, 6, 6, 2)).astype(np.float32)
IMAGES = jnp.asarray(IMAGES * np.linspace(0.2, 3, B, dtype=np.float32)[:, None, None, None])


def network(k=2, **choice):
    how = {"k": k, "choice": Choice(**choice)}
    return MultiPath(
        (
            CrossConnect(N, name="router_1", **how),
            ConvStage((3,), name="stage"),
            CrossConnect(N, name="router_2", **how),
            DenseLayer(5, relu=False, norm=True, name="dense"),
        )
    )


def mesh_of_paths():
    config = default_config()
    config.mesh.path = 2
    return make_mesh(config)


@pytest.mark.parametrize("k", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_paths_on_two_devices_compute_what_one_does(k):
    model = network(k)
    variables = dict(jax.jit(model.init)(jax.random.key(0), IMAGES))
    for name in ("router_1", "router_2"):
        variables["params"][name]["gate"]["w2"] *= 4
    placement.check(model, "the network", 2, IMAGES.shape[1:])
    mutable = ["batch_stats", "routing", "intermediates", "losses"]

    @partial(jax.jit, static_argnums=0)
    def run(apply, variables):
        def loss(params):
            given = {**variables, "params": params}
            logits, found = apply(given, IMAGES, train=True, mutable=mutable)
            return jnp.sum(jnp.sin(logits)), (logits, found)

        return jax.grad(loss, has_aux=True)(variables["params"])

    alone = run(model.apply, variables)
    placed = placement.Placement(model, mesh_of_paths())
    together = run(placed.apply, jax.device_put(variables, placed.sharding(variables)))
    # float32 rounding: sums over two devices have another order.
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-5)
    jax.tree.map(close, jax.device_get(together), jax.device_get(alone))


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"estimator": "gumbel"}, "mesh.path=2: the network uses estimator=gumbel"),
        ({"gate_entropy": 0.1}, "mesh.path=2: the network uses load_entropy or gate_entropy"),
    ],
)
def test_what_devices_do_not_share_is_refused(choice, message):
    with pytest.raises(UserError, match=message):
        placement.check(network(**choice), "the network", 2, IMAGES.shape[1:])


def test_statistics_are_those_of_active_inputs():
    chosen = np.zeros((2, 3, 4), bool)
    chosen[0, :, 1] = True
    chosen[1, 0, 2] = True  # the second input of the other images is inactive
    gates = np.where(chosen, np.float32(1), np.float32(0))
    router = {"gates": (jnp.asarray(gates),), "chosen": (jnp.asarray(chosen),)}
    found = routing_statistics({"a": {"router": router}})
    assert {key: float(value) for key, value in found.items()} == {
        "a/router/entropy": 0.0,
        **{f"a/router/share_{j}": share for j, share in enumerate((0, 0.75, 0.25, 0), start=1)},
        **{f"a/router/load_{j}": share for j, share in enumerate((0, 0.75, 0.25, 0), start=1)},
    }


def config_of(options, **changes):
    config = default_config()
    config.model.name, config.model.options = "BaseCNN-2-CC", options
    config.update(changes)
    return config


def test_a_config_gives_steps_as_parts_of_training():
    options = "k=1,kept=factor,soft_share=0.25,cooling_share=0.5,last_temperature=0.1"
    model = make_model(config_of(options, accumulate=2), 10, steps=100)
    (router, *_) = (layer for layer in model.layers if isinstance(layer, CrossConnect))
    expected = Choice(kept="factor", soft_steps=50, cooling_steps=100, last_temperature=0.1)
    assert (router.k, router.choice) == (1, expected)


@pytest.mark.parametrize("share", ["2", "-0.5", "half"])
def test_a_part_of_training_is_between_none_and_all(share):
    with pytest.raises(UserError, match=f"soft_share={share} must be between 0 and 1"):
        make_model(config_of(f"k=1,soft_share={share}"), 10, 100)
