"""Optimizers from a config: updates, weight decay, and names."""

import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
import pytest

from multipath_jax.config.keys import default_config
from multipath_jax.errors import UserError
from multipath_jax.training.optimizer import is_decayed, make_optimizer

NO_DECAY = default_config().optimizer.no_decay


def optimizer(rate=0.1, weight_decay=0.01, **changes):
    config = default_config().optimizer
    config.update(weight_decay=weight_decay, **changes)
    return make_optimizer(config, lambda _: rate)


PARAMS = {"conv": {"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.array([3.0, 1.0])}}
GRADS = {"conv": {"kernel": jnp.array([[0.5, 0.25]]), "bias": jnp.array([-1.0, 2.0])}}


def three_steps(transform):
    params, state = PARAMS, transform.init(PARAMS)
    for _ in range(3):
        updates, state = transform.update(GRADS, state, params)
        params = optax.apply_updates(params, updates)
    return params


def test_the_update_is_sgd_with_coupled_decay_and_momentum():
    """v <- 0.9 v + (g + 0.01 w), w <- w - 0.1 v; for biases without the term 0.01 w."""
    params = {"kernel": jnp.array([1.0, -2.0]), "bias": jnp.array([3.0])}
    grads = [{"kernel": jnp.array([0.5, 0.25]), "bias": jnp.array([-1.0])}] * 3
    transform = optimizer()
    opt_state = transform.init(params)
    w, v = {k: np.asarray(p) for k, p in params.items()}, {"kernel": 0.0, "bias": 0.0}
    for g in grads:
        updates, opt_state = transform.update(g, opt_state, params)
        params = optax.apply_updates(params, updates)
        for key, decay in (("kernel", 0.01), ("bias", 0.0)):
            v[key] = 0.9 * v[key] + np.asarray(g[key]) + decay * w[key]
            w[key] = w[key] - 0.1 * v[key]
            # float32 arithmetic of three steps.
            np.testing.assert_allclose(params[key], w[key], rtol=1e-6)


def mask(params):
    return {"conv": {"kernel": True, "bias": False}}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"name": "adamw"}, optax.adamw(0.1, weight_decay=0.01, mask=mask)),
        (
            {"name": "adamw", "options": "b1=0.8,nesterov=True"},
            optax.adamw(0.1, b1=0.8, nesterov=True, weight_decay=0.01, mask=mask),
        ),
        (
            {"name": "adamw", "options": "weight_decay=0.02"},
            optax.adamw(0.1, weight_decay=0.02, mask=mask),
        ),
        ({"name": "lion"}, optax.lion(0.1, weight_decay=0.01, mask=mask)),
        (
            {"name": "muon"},
            optax.contrib.muon(0.1, weight_decay=0.01, weight_decay_mask=mask),
        ),
        # Adam has no argument weight_decay: an L2 penalty, as for SGD.
        (
            {"name": "adam"},
            optax.chain(optax.add_decayed_weights(0.01, mask=mask), optax.adam(0.1)),
        ),
        ({"name": "adam", "weight_decay": 0.0}, optax.adam(0.1)),
    ],
    ids=lambda case: "-".join(map(str, case.values())) if isinstance(case, dict) else "",
)
def test_optimizers_of_optax_by_name(changes, expected):
    found = three_steps(optimizer(**changes))
    jax.tree.map(np.testing.assert_array_equal, found, three_steps(expected))
    assert not np.array_equal(found["conv"]["kernel"], PARAMS["conv"]["kernel"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"name": "adammw"},
            "optax has no optimizer 'adammw' .optimizer.name.; the nearest is 'adamw'",
        ),
        ({"name": "polyak_sgd"}, "optimizer.name=polyak_sgd cannot be used by name"),
        ({"name": "apply_updates"}, "optax has no optimizer 'apply_updates'"),
        ({"name": "adamw", "options": "beta=0.9"}, "adamw has no option 'beta'; the nearest is"),
        ({"options": "momentun=0.9"}, "sgd has no option 'momentun'; the nearest is 'momentum'"),
        ({"name": "adamw", "nesterov": True}, "nesterov=True is of sgd, .* use .*nesterov=False"),
        ({"name": "lion", "momentum": 0.8}, "momentum=0.8 is of sgd, .* with optimizer.name=lion"),
        ({"name": "adamw", "options": "b1"}, "'b1' is not of the form name=value"),
    ],
)
def test_what_is_no_optimizer_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        optimizer(**changes)


@networks.each()
def test_weights_decay_and_biases_and_scales_do_not(name):
    """In every network, kernels and matrices decay; biases, scales and coefficients do not."""
    model = networks.create_small(name)
    shape = (1, 28, 28, 1) if name == "CapsNet" else (1, 32, 32, 3)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros(shape)))["params"]
    decayed = jax.tree_util.tree_leaves_with_path(is_decayed(params, NO_DECAY))
    names = {True: set(), False: set()}
    for path, value in decayed:
        names[value].add(path[-1].key)
    assert names[True] <= {"kernel", "w1", "w2", "matrices", "embedding"}
    assert names[False] <= {"bias", "scale", "b1", "b2", "coefficients"}


def test_patterns_are_compared_to_names_and_paths():
    params = {"router_1": {"gate": {"w1": 0, "b1": 0}}, "head": {"kernel": 0}}
    found = is_decayed(params, "b1, router_*/gate/w?")
    assert found == {"router_1": {"gate": {"w1": False, "b1": False}}, "head": {"kernel": True}}
    assert is_decayed(params, "")["router_1"] == {"gate": {"w1": True, "b1": True}}


def test_nesterovs_update_looks_ahead():
    """v <- 0.9 v + g, w <- w - 0.1 (g + 0.9 v), g includes decay (Sutskever et al., 2013)."""
    params = {"kernel": jnp.array([1.0, -2.0])}
    transform = optimizer(nesterov=True)
    opt_state = transform.init(params)
    w, v = np.array([1.0, -2.0]), 0.0
    for gradient in ([0.5, 0.25], [-1.0, 0.5], [0.25, 2.0]):
        updates, opt_state = transform.update({"kernel": jnp.array(gradient)}, opt_state, params)
        params = optax.apply_updates(params, updates)
        g = np.array(gradient) + 0.01 * w
        v = 0.9 * v + g
        w = w - 0.1 * (g + 0.9 * v)
        # float32 arithmetic of three steps.
        np.testing.assert_allclose(params["kernel"], w, rtol=1e-6)
