"""Discrete routers and the paths between them, on which inactive images have no effect."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from multipath_jax import create_model, routing
from multipath_jax.errors import UserError
from multipath_jax.layers import (
    ActivePaths,
    Choice,
    ConvStage,
    CrossConnect,
    CrossStitch,
    DenseLayer,
    OneToMany,
    Parallel,
    Share,
)
from multipath_jax.models.multipath import MultiPath

KEY = jax.random.key(0)
B, N, CLASSES = 12, 3, 4
IMAGES = jax.random.normal(jax.random.key(1), (B, 8, 8, 2)) * jnp.linspace(0.2, 3, B)[
    :, None, None, None
].astype(jnp.float32)
STATE = ["batch_stats", "routing", "intermediates", "losses"]
ROUTERS, PATHS = ("router_1", "router_2"), ("stage", "dense")


def network(k=None, gain=4.0, **choice):
    """Returns a network of two routers, each followed by a stage, and variables.

    The gates are amplified by ``gain``, because initially all outputs are almost equally relevant.
    """
    how = {"k": k, "choice": Choice(**choice)}
    model = MultiPath(
        (
            CrossConnect(N, name="router_1", **how),
            ConvStage((3,), pool=True, name="stage"),
            CrossConnect(N, name="router_2", **how),
            DenseLayer(CLASSES, relu=False, norm=True, name="dense"),
        )
    )
    variables = dict(jax.jit(model.init)(KEY, IMAGES))
    for name in ROUTERS:
        variables["params"][name]["gate"]["w2"] *= gain
    return model, variables


@partial(jax.jit, static_argnums=(0, 2))
def run(model, variables, train, key):
    return model.apply(variables, IMAGES, train=train, mutable=STATE, rngs={"gates": key})


def watched(model, variables, train=False, seed=0):
    logits, found = run(model, variables, train, jax.random.key(seed))
    return logits, found, {name: found["intermediates"][name]["chosen"][0] for name in ROUTERS}


def active_paths(chosen):
    """Returns which paths of each stage are active for which image, ``[n b]`` each."""
    return dict(zip(PATHS, (np.asarray(c).any(0).T for c in chosen.values()), strict=True))


def test_all_outputs_chosen_is_the_soft_network_to_the_bit():
    def both_ways(k):
        model, variables = network(k, kept="factor", estimator="gumbel")

        def loss(params):
            logits, updates = model.apply(
                {**variables, "params": params}, IMAGES, train=True, mutable=["batch_stats"]
            )
            return jnp.sum(jnp.sin(logits)), (logits, updates)

        return variables, jax.jit(jax.grad(loss, has_aux=True))(variables["params"])

    jax.tree.map(np.testing.assert_array_equal, both_ways(N), both_ways(None))


@pytest.mark.parametrize(("k", "execution"), [(1, "grouped"), (2, "unrolled")])
def test_an_image_goes_through_its_own_paths_alone(k, execution):
    model, variables = network(k)
    logits, _, chosen = watched(model.clone(execution=execution), variables)
    active = active_paths(chosen)
    assert {*active["stage"].sum(0)} == {k}

    @partial(jax.jit, static_argnums=0)
    def path(at, j, x):
        """Applies one path to one image."""
        name, layer = PATHS[at], model.layers[2 * at + 1].clone(name=None)
        own = {key: variables[key][name] for key in ("params", "batch_stats")}
        return layer.apply(jax.tree.map(lambda leaf: leaf[j], own), x)

    @partial(jax.jit, static_argnums=0)
    def scores(at, i, x):
        params = routing.GateParams(**variables["params"][ROUTERS[at]]["gate"])
        own = routing.GateParams(*(p[i] for p in params))
        return routing.relevance(routing.global_average_pool(x), own)[0]

    for b in range(0, B, 3):
        xs = {0: np.asarray(IMAGES[b : b + 1])}
        for at, name in enumerate(PATHS):
            ys = {}
            for i, x in xs.items():
                relevance = np.asarray(scores(at, i, x))
                best = np.argsort(-relevance)[:k]
                over = np.exp(relevance[best]).sum()
                for j in best.tolist():
                    ys[j] = ys.get(j, 0) + np.exp(relevance[j]) / over * x
            assert {*ys} == {*np.flatnonzero(active[name][:, b])}
            xs = {j: np.asarray(path(at, j, y)) for j, y in ys.items()}
        # BatchNorm multiplies in a different order, in float32.
        np.testing.assert_allclose(logits[b], np.mean([*xs.values()], 0)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("estimator", "kept"),
    [
        ("none", "factor"),
        pytest.param("straight_through", "renormalized", marks=pytest.mark.slow),
    ],
)
def test_a_path_learns_nothing_from_images_that_skip_it(estimator, kept):
    model, variables = network(1, estimator=estimator, kept=kept)
    _, _, chosen = watched(model, variables)
    active = active_paths(chosen)
    assert all(0 < paths.sum() < B * N for paths in active.values())

    @jax.jit
    def gradient(image):
        def logit(params):
            return model.apply({**variables, "params": params}, image[None]).sum()

        return jax.grad(logit)(variables["params"])

    gradients = [gradient(image) for image in IMAGES]
    for name in PATHS:
        leaves = [
            np.stack(leaves)
            for leaves in zip(*map(jax.tree.leaves, (g[name] for g in gradients)), strict=True)
        ]
        moved = [np.abs(leaf).reshape(B, N, -1).max(-1) > 0 for leaf in leaves]  # [b n]
        assert not any(one[~active[name].T].any() for one in moved)
        assert np.any(moved, axis=0)[active[name].T].all()


@partial(jax.jit, static_argnums=0)
def trained(module, variables, xs):
    return module.apply(variables, xs, train=True, mutable=["batch_stats"])


def test_statistics_are_those_of_the_active_images():
    layer, active = ConvStage((3,)), np.arange(B) % 3 == 0
    paths = ActivePaths(
        jnp.stack([IMAGES] * 2), jnp.stack([jnp.asarray(active), jnp.zeros(B, bool)])
    )
    module = Parallel(layer)
    variables = jax.jit(module.init)(KEY, paths)
    ys, found = trained(module, variables, paths)
    first = jax.tree.map(lambda leaf: leaf[0], variables)
    alone, own = trained(layer, first, IMAGES[active])
    # Means of a few hundred float32 numbers, summed in different orders.
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    close(ys.tensors[0][active], alone)
    assert not ys.tensors[0][~active].any()
    jax.tree.map(lambda a, b: close(a[0], b), found, own)
    # No image takes the other path, so its statistics are unchanged.
    before = variables["batch_stats"]
    jax.tree.map(lambda a, b: close(a[1], b[1]), found["batch_stats"], before)
    assert not ys.tensors[1].any()


@pytest.mark.slow
def test_without_a_discrete_router_batch_norm_is_flax_s():
    layer = ConvStage((3,))
    everywhere = ActivePaths(IMAGES[None], jnp.ones((1, B), bool))
    variables = jax.jit(Parallel(layer).init)(KEY, IMAGES[None])
    ys, found = trained(Parallel(layer), variables, everywhere)
    expected, own = trained(Parallel(layer), variables, IMAGES[None])
    np.testing.assert_allclose(ys.tensors, expected, rtol=1e-4, atol=1e-5)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), found, own)


def test_the_router_is_soft_first():
    model, variables = network(1, soft_steps=2, estimator="gumbel", temperature=0.3)
    soft, same = network()
    seen = []
    for _ in range(3):
        logits, found, chosen = watched(model, variables, train=True)
        seen.append(all(c.all() for c in chosen.values()))
        if seen[-1]:
            expected, _ = run(soft, {key: variables[key] for key in same}, True, KEY)
            # The networks compute the statistics by different sums.
            np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)
        variables |= {key: found[key] for key in ("batch_stats", "routing")}
    assert seen == [True, True, False]
    assert not any(c.all() for c in watched(model, variables)[2].values())
    assert int(variables["routing"]["router_1"]["chooser"]["step"]) == 3


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [("soft_steps", "abc", "int"), ("cooling_steps", 0.5, "int"), ("bias_rate", True, "float")],
)
def test_options_of_another_type_are_refused(name, value, kind):
    choice = Choice()
    object.__setattr__(choice, name, value)  # annotations are checked in calls
    with pytest.raises(ValueError, match=f"{name}={value!r}: must be of type {kind}"):
        choice.__post_init__()


def test_the_temperature_falls_exponentially():
    choice = Choice(temperature=2.0, last_temperature=0.5, cooling_steps=4)
    found = [float(choice.temperature_at(jnp.int32(step))) for step in (0, 2, 4, 9)]
    np.testing.assert_allclose(found, [2.0, 1.0, 0.5, 0.5], rtol=1e-6)


def test_noise_and_temperature_are_those_of_training_alone():
    found = {}
    for estimator in ("none", "gumbel"):
        model, variables = network(1, gain=1.0, estimator=estimator)
        found[estimator] = watched(model, variables)[0]
        _, _, chosen = watched(model, variables, train=True, seed=3)
        _, _, again = watched(model, variables, train=True, seed=4)
        sampled = any((chosen[name] != again[name]).any() for name in ROUTERS)
        assert sampled == (estimator == "gumbel")
    jax.tree.map(
        np.testing.assert_array_equal, found["gumbel"], found["none"]
    )  # no noise in evaluation


def test_entropy_terms_are_losses():
    model, variables = network(1, load_entropy=0.5, gate_entropy=0.25)
    _, found, _ = watched(model, variables, train=True)
    for name in ROUTERS:
        gates = jax.nn.softmax(found["intermediates"][name]["relevance"][0])
        active = found["intermediates"][name]["chosen"][0].any(-1)
        wanted, undecided = routing.entropies(gates, active)
        (loss,) = found["losses"][name]["chooser"]["balance"]
        np.testing.assert_allclose(loss, 0.5 * (1 - wanted) + 0.25 * undecided, rtol=1e-5)
    _, found = jax.eval_shape(partial(model.apply, mutable=STATE), variables, IMAGES)
    assert "losses" not in found


@pytest.mark.parametrize(
    "balance",
    [
        {},
        pytest.param({"bias_rate": 0.0, "load_entropy": 1.0}, marks=pytest.mark.slow),
        pytest.param({"bias_rate": 0.0}, marks=pytest.mark.slow),
    ],
)
def test_with_balance_no_path_stays_unused(balance):
    model, variables = network(1, gain=1.0, **balance)
    for name in ROUTERS:  # all images prefer output 0
        variables["params"][name]["gate"]["b2"] = (
            variables["params"][name]["gate"]["b2"].at[:, 0].set(1.0)
        )
        variables["params"][name]["gate"]["w2"] *= 0.2
    labels = jnp.arange(B) % CLASSES

    @jax.jit
    def step(variables):
        def loss(params):
            logits, found = model.apply(
                {**variables, "params": params}, IMAGES, train=True, mutable=STATE
            )
            own = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
            return own + sum(map(jnp.sum, jax.tree.leaves(found.get("losses", {})))), found

        gradients, found = jax.grad(loss, has_aux=True)(variables["params"])
        params = jax.tree.map(lambda p, g: p - 0.1 * g, variables["params"], gradients)
        return {"params": params, **{key: found[key] for key in ("batch_stats", "routing")}}

    used = {name: np.zeros(N, bool) for name in ROUTERS}
    for number in range(80):
        variables = step(variables)
        if number >= 60:
            for name, chosen in watched(model, variables)[2].items():
                used[name] |= np.asarray(chosen).any((0, 1))
    balanced = balance != {"bias_rate": 0.0}
    assert used["router_1"].all() == balanced
    assert used["router_2"].all() or not balanced


def test_one_to_many_may_be_discrete():
    router = OneToMany(N, k=2)
    paths, _ = jax.jit(router.init_with_output)(KEY, IMAGES)
    np.testing.assert_array_equal(paths.active.sum(0), [2] * B)
    np.testing.assert_allclose(paths.tensors.sum(0), IMAGES, rtol=1e-5, atol=1e-6)


def test_a_soft_router_after_a_discrete_one_mixes_the_active_paths():
    paths, _ = jax.jit(OneToMany(N, k=1).init_with_output)(KEY, IMAGES)
    ys, found = jax.jit(partial(CrossConnect(2).init_with_output, mutable=True))(KEY, paths)
    (gates,) = found["intermediates"]["gates"]
    np.testing.assert_allclose(gates.sum((0, 2)), np.ones(B), rtol=1e-6)
    assert ys.active.all()
    np.testing.assert_allclose(ys.tensors.sum(0), IMAGES, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layer", [CrossStitch(2), Share(2)])
def test_other_routers_cannot_follow_a_discrete_one(layer):
    paths = ActivePaths(jnp.stack([IMAGES] * 2), jnp.ones((2, B), bool))
    with pytest.raises(
        ValueError, match=f"{type(layer).__name__}.*a discrete router.*use CrossConn"
    ):
        layer.init(KEY, paths)


@pytest.mark.parametrize("k", [0, 4])
def test_a_k_that_cannot_be_names_the_router(k):
    with pytest.raises(ValueError, match=rf"1 <= k <= 3, the number of outputs, got k={k}"):
        CrossConnect(N, k=k).init(KEY, IMAGES[None])


@pytest.mark.parametrize("name", ["BaseCNN-2-CC", "ResNet8-2-CC", "VGG13-2-CC", "ResNet18-2-CC"])
def test_every_cross_connected_network_may_be_discrete(name):
    model = create_model(name, k=1, kept="factor", temperature=2.0)
    routers = [layer for layer in model.layers if isinstance(layer, CrossConnect)]
    assert {router.k for router in routers} == {1}
    assert {router.choice for router in routers} == {Choice(kept="factor", temperature=2.0)}


def test_a_discrete_network_has_the_parameters_of_the_soft_one():
    name, images = "BaseCNN-2-CC", jnp.zeros((1, 32, 32, 3))
    model = create_model(name, k=1)
    variables = jax.eval_shape(model.init, KEY, images)
    routers = [layer for layer in model.layers if isinstance(layer, CrossConnect)]
    assert {*variables["routing"]} == {router.name for router in routers}
    shapes = jax.tree.map(jnp.shape, variables["params"])
    soft = jax.eval_shape(create_model(name).init, KEY, images)["params"]
    assert shapes == jax.tree.map(jnp.shape, soft)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("BaseCNN-4-CC", {"k": 5}, "k=5: must be an integer from 1 to 4, the number of paths"),
        ("BaseCNN-4-CC", {"k": 0}, "k=0: must be an integer from 1 to 4"),
        ("BaseCNN-4-CC", {"k": 1.5}, "k=1.5: "),
        ("BaseCNN-4-CC", {"k": True}, "k=True: must be an integer"),
        ("BaseCNN-4-CC", {"k": 1, "last_temperature": 0.1}, "last_temperature=0.1 needs cooling_"),
        ("BaseCNN-4-CC", {"kept": "factor"}, "'kept' is for discrete routing; set k"),
        (
            "BaseCNN-4-CC",
            {"k": 1, "kept": "half"},
            "kept='half': must be one of renormalized, factor",
        ),
        (
            "BaseCNN-4-CC",
            {"k": 1, "estimator": "x"},
            "estimator='x': must be one of none, straight",
        ),
        ("BaseCNN-4-CC", {"k": 1, "temperature": 0.0}, "temperature=0.0: must be positive"),
        ("BaseCNN-4-CC", {"k": 1, "bias_rate": -1.0}, "bias_rate=-1.0: must be at least 0"),
        ("BaseCNN-4-CP", {"k": 1}, "BaseCNN-4-CP has no option 'k'"),
        ("BaseCNN-4", {"k": 1}, "BaseCNN-4 has no option 'k'"),
    ],
)
def test_options_that_cannot_be_are_named(name, options, message):
    with pytest.raises(UserError, match=message):
        create_model(name, **options)
