"""Training of networks with discrete routers: sharded paths, routing statistics, config."""

import contextlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from weights import random_like

from multipath_jax import checkpoints as ckpt
from multipath_jax.config.keys import default_config
from multipath_jax.data import from_arrays
from multipath_jax.errors import UserError
from multipath_jax.layers import Choice, ConvStage, CrossConnect, DenseLayer
from multipath_jax.metrics_file import counted, read_metrics
from multipath_jax.models.multipath import MultiPath
from multipath_jax.parallel import placement
from multipath_jax.parallel.devices import make_mesh
from multipath_jax.trainer import Trainer
from multipath_jax.training import run as run_lib
from multipath_jax.training.metrics import routing_statistics
from multipath_jax.training.setup import Setup, make_model

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


def test_a_network_that_was_cooled_is_made_after_training():
    model = make_model(config_of("k=1,cooling_share=0.5,last_temperature=0.1"), 10)
    (router, *_) = (layer for layer in model.layers if isinstance(layer, CrossConnect))
    assert (router.choice.last_temperature, router.choice.cooling_steps) == (0.1, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("k=1,soft_share=0.3,soft_steps=5", "give soft_share or soft_steps, not both"),
        ("k=1,cooling_share=0.3,cooling_steps=5", "give cooling_share or cooling_steps, not both"),
        ("soft_share=0.3", "soft_share is for discrete routing; set k, too"),
    ],
)
def test_shares_that_cannot_be_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        make_model(config_of(options), 10, 100)


@pytest.mark.parametrize("share", ["2", "-0.5", "half"])
def test_a_part_of_training_is_between_none_and_all(share):
    with pytest.raises(UserError, match=f"soft_share={share} must be between 0 and 1"):
        make_model(config_of(f"k=1,soft_share={share}"), 10, 100)


# Runs

PIXELS, LABELS = np.asarray(IMAGES)[:, :2, :2], np.arange(B) % 5
DATA = from_arrays(PIXELS, LABELS, PIXELS, LABELS)


def recipe(**changes):
    """The config of five steps, each with an evaluation."""
    config = default_config()
    own = {"train_for": "5 steps", "eval_every": "1 step", "checkpoint_every": "2 steps"}
    own |= {"batch_size": B, "compilation_cache": "", "tensorboard": "off"}
    config.update_from_flattened_dict(own | changes)
    return config


def routed(k, **choice):
    """A network of one router."""
    router = CrossConnect(2, k=k, choice=Choice(estimator="none", **choice), name="router")
    return MultiPath((router, DenseLayer(5, relu=False, name="dense")))


def test_errors_of_the_soft_steps_do_not_count(tmp_path, monkeypatch):
    errors = iter([5.0, 5.0, 50.0, 40.0, 45.0])
    monkeypatch.setattr(
        "multipath_jax.training.setup.make_evaluator",
        lambda *_: lambda _: {"loss": 1.0, "error": next(errors)},
    )
    saved, save = [], run_lib.Run.save
    monkeypatch.setattr(
        run_lib.Run, "save", lambda run, e: saved.append((run.step, e)) or save(run, e)
    )
    trainer = Trainer(recipe(patience="2 steps"), model=routed(1, soft_steps=3), dataset=DATA)
    result = trainer.fit(tmp_path)
    # After the third step, the routers are discrete.
    assert saved == [(2, None), (3, 50.0), (4, 40.0), (5, 45.0)]
    assert (result.step, result.best_error) == (5, 40.0)
    lines = read_metrics(epath.Path(tmp_path))
    assert [line.get("soft") for line in lines] == [1.0, 1.0, None, None, None]
    assert [line["step"] for line in counted(lines, "test/error")] == [3, 4, 5]


def saved_by(model, workdir):
    """Saves random variables of a network in a workdir, and returns them."""
    carry = random_like(Setup(recipe(), DATA, model=model).abstract_carry, seed=0)
    with ckpt.claimed(workdir), contextlib.closing(ckpt.Checkpoints(workdir)) as checkpoints:
        checkpoints.save(1, carry, 50.0)
    return carry.state.variables


def started_from(workdir, model):
    """The initial variables of a run from the weights in a workdir."""
    config = recipe(init_from=str(workdir))
    carry, _ = run_lib.first_carry(Setup(config, DATA, model=model), config)
    return carry.state.variables


def test_a_run_from_a_discrete_one_has_its_biases_and_its_own_soft_steps(workdir):
    there = saved_by(routed(1), workdir)
    found = started_from(workdir, routed(1, soft_steps=3))
    jax.tree.map(np.testing.assert_array_equal, found["params"], there["params"])
    state, trained = (one["routing"]["router"]["chooser"] for one in (found, there))
    np.testing.assert_array_equal(state["bias"], trained["bias"])
    assert (int(state["step"]), bool(state["soft"])) == (0, True)
    assert (int(trained["step"]), bool(trained["soft"])) != (0, True)


def test_a_discrete_run_starts_from_a_soft_one(workdir):
    there = saved_by(routed(None), workdir)
    found = started_from(workdir, routed(1))
    jax.tree.map(np.testing.assert_array_equal, found["params"], there["params"])
    assert not found["routing"]["router"]["chooser"]["bias"].any()
