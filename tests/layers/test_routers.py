"""Routers: the equations with parameters of their own, and what they record."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


def test_the_written_out_backward_pass_changes_no_result():
    variables = init(CrossConnect(2), MAPS)

    def loss(variables, xs, custom_vjp):
        return jnp.sum(jnp.sin(CrossConnect(2, custom_vjp=custom_vjp).apply(variables, xs)))

    custom, auto = (
        jax.value_and_grad(loss, (0, 1))(variables, MAPS, custom_vjp)
        for custom_vjp in (True, False)
    )
    # Sums of 4 x 25 float32 products in two orders: some units in the seventh digit.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), custom, auto)


def test_one_to_many_is_the_cross_connection_of_one_tensor():
    variables = init(OneToMany(3), MAPS[0])
    ys = OneToMany(3).apply(variables, MAPS[0])
    np.testing.assert_array_equal(ys, CrossConnect(3).apply(variables, MAPS[:1]))
    np.testing.assert_allclose(ys.sum(0), MAPS[0], rtol=1e-5, atol=1e-6)  # one gate's sum is one


def test_share_gives_every_path_the_same_tensor_and_has_no_parameters():
    assert not jax.tree.leaves(Share(2).init(KEY, MAPS[:1]))
    np.testing.assert_array_equal(Share(2).apply({}, MAPS[:1]), jnp.stack([MAPS[0]] * 2))


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
        u = (np.asarray(u) + conv["bias"][i]) / np.sqrt(1 + 1e-5)  # BatchNorm as initialized
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
