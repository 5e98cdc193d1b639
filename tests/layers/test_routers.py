"""Router layers against the functions in `routing`, and the intermediates they record."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from multipath_jax import routing
from multipath_jax.layers import (
    NDDR,
    ConvCrossPredict,
    CrossConnect,
    DenseCrossPredict,
    Gate,
    GumbelGate,
    HyperConv,
    KernelGenerator,
    OneToMany,
    Router,
    Share,
    SkipGate,
    SqueezeExcite,
)

KEY = jax.random.key(0)
MAPS = jax.random.normal(jax.random.key(1), (3, 4, 5, 5, 6))  # m b h w c
VECTORS = MAPS[:, :, 0, 0]


def init(router, xs, **kwargs):
    return {"params": router.init(KEY, xs, **kwargs)["params"], **_statistics(router, xs)}


def _statistics(router, xs):
    variables = router.init(KEY, xs)
    return {key: variables[key] for key in variables if key == "batch_stats"}


@pytest.mark.parametrize("xs", [MAPS, VECTORS])
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("custom_vjp", [True, False])
def test_cross_connect_is_the_paper_s_layer_and_records_its_gates(xs, n, custom_vjp):
    router = CrossConnect(n, custom_vjp=custom_vjp)
    variables = init(router, xs)
    ys, recorded = router.apply(variables, xs, mutable=["intermediates"])
    (gates,) = recorded["intermediates"]["gates"]
    (relevance,) = recorded["intermediates"]["relevance"]
    params = routing.GateParams(**variables["params"]["gate"])
    for i, x in enumerate(xs):
        own = routing.GateParams(*(p[i] for p in params))
        np.testing.assert_allclose(gates[i], routing.gate(x, own), rtol=1e-6)
    np.testing.assert_allclose(ys, routing.cross_connect(xs, gates), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.nn.softmax(relevance), gates, rtol=1e-6)


def primitives(jaxpr):
    """Yields the names of all primitives of a program, including nested programs."""
    for eqn in jaxpr.eqns:
        yield eqn.primitive.name
        for inner in core.jaxprs_in_params(eqn.params):
            yield from primitives(inner)


@pytest.mark.parametrize("custom_vjp", [True, False])
def test_the_recorded_gates_are_those_that_mix(custom_vjp):
    router = CrossConnect(2, custom_vjp=custom_vjp)
    variables = init(router, MAPS)
    watch = partial(router.apply, mutable=["intermediates"])
    ys, recorded = watch(variables, MAPS)
    (gates,) = recorded["intermediates"]["gates"]
    np.testing.assert_array_equal(ys, routing.cross_connect(MAPS, gates))
    program = jax.make_jaxpr(watch)(variables, MAPS)
    # Recording adds no softmax: there is one for each of three inputs, or one for all inputs.
    assert [*primitives(program.jaxpr)].count("exp") == (3 if custom_vjp else 1)


@pytest.mark.parametrize("custom_vjp", [True, False])
def test_a_loss_on_the_gates_trains_them(custom_vjp):
    router = CrossConnect(2, custom_vjp=custom_vjp)
    variables = init(router, MAPS)

    def entropy(variables):
        _, recorded = router.apply(variables, MAPS, mutable=["intermediates"])
        (gates,) = recorded["intermediates"]["gates"]
        return -jnp.mean(jnp.sum(gates * jnp.log(gates), -1))

    before, gradients = jax.value_and_grad(entropy)(variables)
    after = entropy(jax.tree.map(lambda p, g: p + g, variables, gradients))
    assert after > before + 1e-3


def test_forward_mode_without_the_written_out_backward_pass():
    variables = init(CrossConnect(2), MAPS)
    direction = jax.tree.map(jnp.ones_like, variables)

    def loss(custom_vjp, variables):
        return jnp.sum(jnp.sin(CrossConnect(2, custom_vjp=custom_vjp).apply(variables, MAPS)))

    _, forward = jax.jvp(partial(loss, False), (variables,), (direction,))
    gradients = jax.grad(partial(loss, True))(variables)
    reverse = sum(jnp.sum(leaf) for leaf in jax.tree.leaves(gradients))
    np.testing.assert_allclose(forward, reverse, rtol=1e-4)  # different order of long sums
    with pytest.raises(TypeError, match="use custom_vjp=False"):
        jax.jvp(partial(loss, True), (variables,), (direction,))


class Strongest(Router):
    """A custom router that sends each input to one output."""

    additive = True

    def mix(self, xs, gates, train):
        return routing.cross_connect(xs, jax.nn.one_hot(gates.argmax(-1), self.num_outputs))


def test_a_router_of_ones_own_is_one_class():
    xs = [*MAPS]
    variables = init(Strongest(2), xs)
    ys, recorded = Strongest(2).apply(variables, xs, mutable=["intermediates"])
    (gates,) = recorded["intermediates"]["gates"]
    for b in range(4):
        expected = jnp.zeros((2, *MAPS.shape[2:]))
        for i in range(3):
            expected = expected.at[jnp.argmax(gates[i, b])].add(MAPS[i, b])
        np.testing.assert_allclose(ys[:, b], expected, rtol=1e-5, atol=1e-6)
    assert recorded["intermediates"]["output_strength"][0].shape == (2, 4)
    with pytest.raises(ValueError, match=r"Strongest.*num_outputs >= 1, got 0"):
        Strongest(0).init(KEY, xs)


def test_the_written_out_backward_pass_changes_no_result():
    variables = init(CrossConnect(2), MAPS)

    def loss(variables, xs, custom_vjp):
        return jnp.sum(jnp.sin(CrossConnect(2, custom_vjp=custom_vjp).apply(variables, xs)))

    custom, auto = (
        jax.value_and_grad(loss, (0, 1))(variables, MAPS, custom_vjp)
        for custom_vjp in (True, False)
    )
    # Sums of 4 x 25 float32 products in different orders differ in the seventh digit.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), custom, auto)


def test_one_to_many_is_the_cross_connection_of_one_tensor():
    variables = init(OneToMany(3), MAPS[0])
    ys = OneToMany(3).apply(variables, MAPS[0])
    np.testing.assert_array_equal(ys, CrossConnect(3).apply(variables, MAPS[:1]))
    np.testing.assert_allclose(ys.sum(0), MAPS[0], rtol=1e-5, atol=1e-6)  # gates sum to one


def test_share_gives_every_path_the_same_tensor_and_has_no_parameters():
    assert not jax.tree.leaves(Share(2).init(KEY, MAPS[:1]))
    np.testing.assert_array_equal(Share(2).apply({}, MAPS[:1]), jnp.stack([MAPS[0]] * 2))
    mean = jnp.stack([sum(MAPS) / len(MAPS)] * 2)  # another order of sums
    np.testing.assert_allclose(Share(2).apply({}, MAPS), mean, rtol=1e-6, atol=1e-6)


def test_conv_cross_predict_is_algorithm_1_over_convolutions():
    n, f = 2, 7
    router = ConvCrossPredict(n, features=f)
    variables = init(router, MAPS)
    ys, recorded = router.apply(variables, MAPS, train=False, mutable=["intermediates"])
    gates = recorded["intermediates"]["gates"][0]
    conv = jax.tree.map(np.asarray, variables["params"]["prediction"]["conv"])
    assert conv["kernel"].shape == (3, 3, 3, 6, n * f)
    expected = 0.0
    for i in range(len(MAPS)):
        u = jax.lax.conv_general_dilated(
            MAPS[i], conv["kernel"][i], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        u = (np.asarray(u) + conv["bias"][i]) / np.sqrt(1 + 1e-5)  # initial BatchNorm
        u = u.reshape(*u.shape[:-1], n, f)
        expected += np.einsum("bn,bhwnf->nbhwf", gates[i], u)
    np.testing.assert_allclose(ys, np.maximum(expected, 0), rtol=1e-4, atol=1e-5)


def test_dense_cross_predict_is_algorithm_1_over_dense_layers():
    n, f = 4, 3
    router = DenseCrossPredict(n, features=f)
    variables = init(router, VECTORS)
    ys, recorded = router.apply(variables, VECTORS, mutable=["intermediates"])
    gates = recorded["intermediates"]["gates"][0]
    dense = variables["params"]["prediction"]["dense"]
    us = np.einsum("mbc,mcf->mbf", VECTORS, dense["kernel"]) + dense["bias"][:, None]
    expected = np.einsum("mbn,mbnf->nbf", gates, us.reshape(3, -1, n, f))
    np.testing.assert_allclose(ys, np.maximum(expected, 0), rtol=1e-4, atol=1e-5)


def test_strengths_are_the_mean_activations_of_section_7_1():
    variables = init(CrossConnect(2), MAPS)
    ys, recorded = CrossConnect(2).apply(variables, MAPS, mutable=["intermediates"])
    recorded = recorded["intermediates"]
    np.testing.assert_allclose(recorded["input_strength"][0], MAPS.mean((2, 3, 4)), rtol=1e-4)
    np.testing.assert_allclose(recorded["output_strength"][0], ys.mean((2, 3, 4)), rtol=1e-4)


def test_bfloat16_maps_keep_float32_gates():
    xs = MAPS.astype(jnp.bfloat16)
    ys, recorded = CrossConnect(2).apply(init(CrossConnect(2), xs), xs, mutable=["intermediates"])
    assert ys.dtype == jnp.bfloat16
    assert recorded["intermediates"]["gates"][0].dtype == jnp.float32


@pytest.mark.parametrize("make", [CrossConnect, ConvCrossPredict, DenseCrossPredict, Share])
@pytest.mark.parametrize(
    ("n", "xs", "message"),
    [
        (2, [jnp.ones((2, 4, 4, 3)), jnp.ones((2, 4, 4, 5))], r"\(2, 4, 4, 3\), \(2, 4, 4, 5\)"),
        (2, [jnp.ones(4)], r"one shape \[b ... c\], got \[\(4,\)\]"),
        (0, [jnp.ones((2, 4, 4, 3))], r"num_outputs >= 1, got 0 for 1 tensors of shape \(2, 4"),
        (-1, [jnp.ones((2, 4, 4, 3))], "num_outputs >= 1, got -1"),
        (2, [jnp.ones((2, 4, 4, 0))], r"with channels and pixels, got \(2, 4, 4, 0\)"),
        (2, [jnp.ones((2, 0, 4, 3))], r"with channels and pixels, got \(2, 0, 4, 3\)"),
    ],
)
def test_what_does_not_fit_names_the_layer_and_the_shapes(make, n, xs, message):
    with pytest.raises(ValueError, match=rf"{make.__name__}.*{message}"):
        make(n).init(KEY, xs)


@pytest.mark.parametrize("make", [CrossConnect, OneToMany, ConvCrossPredict, NDDR, Gate])
def test_widths_below_one_name_the_layer(make):
    xs = MAPS[0] if make is OneToMany else MAPS
    width = "features" if make is NDDR else "hidden"
    with pytest.raises(ValueError, match=rf"{make.__name__}.* {width} >= 1, got 0 for .*6\)"):
        make(2, **{width: 0}).init(KEY, xs)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (GumbelGate(hidden=0), "GumbelGate .*: needs hidden >= 1, got 0"),
        (SkipGate(hidden=0), "SkipGate .*: needs hidden >= 1, got 0"),
        (SqueezeExcite(ratio=0), "SqueezeExcite .*: needs ratio >= 1, got 0"),
        (HyperConv(6, KernelGenerator(channels=0)), "HyperConv .*: needs channels >= 1, got 0"),
        (HyperConv(6, KernelGenerator(2, hidden=0)), "KernelGenerator .*: needs hidden >= 1, got"),
    ],
)
def test_other_layers_name_themselves_too(layer, message):
    with pytest.raises(ValueError, match=message):
        layer.init(KEY, MAPS[0])
    if not isinstance(layer, HyperConv):
        with pytest.raises(ValueError, match="with channels and pixels"):
            type(layer)().init(KEY, MAPS[0, ..., :0])
