"""`multipath_jax.routing`: values, derivatives, memory and errors.

Values and first derivatives are compared with the loops of ``reference.py``, computed in float64
from the same, already rounded inputs. First and second derivatives are also compared with automatic
differentiation of `cross_connect` and `gate`, which have no custom backward pass.
"""

import functools
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.test_util import check_grads

from multipath_jax import routing
from multipath_jax.routing import GateParams

pytestmark = pytest.mark.usefixtures("strict")

B, C, D = 4, 5, 6  # batch, channels, hidden width of a gate

spaces = pytest.mark.parametrize("space", [(), (2, 3)], ids=["vectors", "maps"])
shapes = pytest.mark.parametrize(
    ("m", "n", "space"),
    [(2, 3, (2, 3)), (3, 2, ()), (1, 2, (2, 3)), (2, 1, ()), (1, 1, (2, 3))],
    ids=["2-3-maps", "3-2-vectors", "1-2-maps", "2-1-vectors", "1-1-maps"],
)

EXACT = {"rtol": 1e-12, "atol": 1e-12}
# float32 rounds to 24 bits, with a relative error of 2^-24 = 6e-8. A tested number is the result of
# about 60 operations on numbers of order one: if all errors have one sign, 60 x 6e-8 = 4e-6.
SINGLE = {"rtol": 5e-6, "atol": 5e-6}
# bfloat16 has 8 bits of mantissa, including the hidden bit, so that rounding to nearest has a
# relative error of up to 2^-8. Mixtures and gradients are computed in float32 and rounded once at
# the end: the tolerance is that of one rounding, plus the tolerance of float32.
HALF = {"rtol": 2.0**-8 + SINGLE["rtol"], "atol": SINGLE["atol"]}
TOLERANCE = {"float64": EXACT, "float32": SINGLE, "bfloat16": HALF}


@pytest.fixture(params=["float64", "float32", "bfloat16"])
def dtype(request):
    with jax.enable_x64(request.param == "float64"):
        yield jnp.dtype(request.param)


def gate_dtype(dtype):
    return jnp.dtype("float64" if dtype == "float64" else "float32")


def normal(seed, dtype, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def gate_params(dtype, m, n, c=C):
    """Random parameters of m gates, or of one gate, without the axis m, if m is ``()``."""
    m = (m,) if m else ()
    shapes = GateParams(w1=(*m, c, D), b1=(*m, D), w2=(*m, D, n), b2=(*m, n))
    return GateParams(*(normal(10 + i, dtype, *shape) for i, shape in enumerate(shapes)))


def each_gate(params):
    return [GateParams(*arrays) for arrays in zip(*params, strict=True)]


def probabilities(dtype, m, n):
    positive = np.random.default_rng(20).exponential(size=(m, B, n))
    return jnp.asarray(positive / positive.sum(axis=2, keepdims=True), gate_dtype(dtype))


def exact(tree):
    """The same numbers as float64 NumPy arrays, for the reference."""
    return jax.tree.map(lambda x: np.asarray(x).astype(np.float64), tree)


def reference_gates(params):
    """The parameters of m gates as a list of m tuples, for the reference."""
    return list(zip(*exact(params), strict=True))


def assert_close(actual, expected, dtype):
    """Asserts that leaves of ``actual`` have this type, and are equal within its tolerance."""
    actual, expected = jax.tree.leaves(actual), jax.tree.leaves(expected)
    assert len(actual) == len(expected) > 0
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(exact(a), e, **TOLERANCE[str(dtype)])


def assert_finite(tree):
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(exact(tree)))


@functools.partial(jax.jit, static_argnums=0)
def run_both_ways(layer, xs, weights, dys):
    """The outputs of a layer and the gradients for ``dys``, compiled once for all tests."""
    ys, backward = jax.vjp(layer, xs, weights)
    return ys, backward(dys)


def reference_gradients(backward, xs, weights, dys):
    """The gradients of the reference, stacked like those of `run_both_ways`."""
    gated = isinstance(weights, GateParams)
    dxs, dweights = reference.backward_for_each_example(
        backward, exact(xs), reference_gates(weights) if gated else exact(weights), exact(dys)
    )
    if gated:
        return np.stack(dxs), GateParams(*(np.stack(a) for a in zip(*dweights, strict=True)))
    return np.stack(dxs), np.stack(dweights)


# --- Section 3: the gate, Eqs. 1-3 ---------------------------------------------------------------


@spaces
def test_global_average_pool_is_eq_1(space, dtype):
    x = normal(0, dtype, B, *space, C)
    z = routing.global_average_pool(x)
    assert_close(
        z, np.stack([reference.global_average_pool(X) for X in exact(x)]), gate_dtype(dtype)
    )
    if not space:
        np.testing.assert_array_equal(exact(z), exact(x))


def test_relevance_is_eq_2(dtype):
    z, params = normal(0, gate_dtype(dtype), B, C), gate_params(dtype, (), 3)
    expected = np.stack([reference.relevance(Z, *exact(params)) for Z in exact(z)])
    assert_close(jax.jit(routing.relevance)(z, params), expected, gate_dtype(dtype))


@spaces
@pytest.mark.parametrize("n", [1, 3])
def test_gate_is_eqs_1_to_3(n, space, dtype):
    x, params = normal(0, dtype, B, *space, C), gate_params(dtype, (), n)
    gates = jax.jit(routing.gate)(x, params)
    expected = np.stack([reference.gate(X, *exact(params)) for X in exact(x)])
    # Gates are computed in float32 also for bfloat16 inputs.
    assert_close(gates, expected, gate_dtype(dtype))
    np.testing.assert_allclose(gates.sum(axis=1), 1, rtol=1e-6)
    assert bool(jnp.all((gates >= 0) & (gates <= 1)))


def test_gate_of_extreme_scores_is_one_hot(dtype):
    params = gate_params(dtype, (), 3)._replace(b2=jnp.array([-1e4, 1e4, 0], dtype))
    gates = jax.jit(routing.gate)(normal(0, dtype, B, C), params)
    np.testing.assert_array_equal(gates, [[0, 1, 0]] * B)


# --- Section 3: cross-prediction, Algorithm 1 ----------------------------------------------------


@shapes
def test_cross_predict_is_algorithm_1(m, n, space, dtype):
    # Small integers, so that predictions are exact in all types: they are sums of 5 products of at
    # most 3 x 2, and a bias of at most 2. Gates are not exact.
    rng = np.random.default_rng(0)
    xs = rng.integers(-3, 4, size=(m, B, *space, C)).astype(float)
    weights = rng.integers(-2, 3, size=(m, n, C, C)).astype(float)
    biases = rng.integers(-2, 3, size=(m, n, C)).astype(float)
    params = gate_params(dtype, m, n)
    us = [[jnp.asarray(xs[i] @ weights[i, j] + biases[i, j], dtype) for j in range(n)]
          for i in range(m)]  # fmt: skip

    @jax.jit
    def layer(xs, us, params):
        gates = [routing.gate(x, p) for x, p in zip(xs, each_gate(params), strict=True)]
        return routing.cross_predict(us, gates)

    ys = layer(jnp.asarray(xs, dtype), us, params)

    expected = reference.for_each_example(
        reference.algorithm_1, xs, weights, biases, reference_gates(params)
    )
    assert_close(ys, expected, dtype)
    assert min(float(y.min()) for y in ys) == 0  # the ReLU of Eq. 4 has an effect


def test_cross_predict_takes_every_form():
    m, n = 3, 2
    us, gates = normal(0, "float32", m, n, B, 2, 3, C), probabilities("float32", m, n)
    cross_predict = jax.jit(routing.cross_predict)
    stacked = cross_predict(us, gates)
    assert stacked.shape == (n, B, 2, 3, C)
    for form in ([list(u) for u in us], tuple(tuple(u) for u in us), list(us)):
        ys = cross_predict(form, list(gates))
        assert type(ys) is type(form)
        np.testing.assert_array_equal(jnp.stack(ys), stacked)


# --- Section 4: cross-connection, Algorithm 2, Eqs. 5 and 6 --------------------------------------


@shapes
def test_cross_connect_is_eq_5_and_eq_6(m, n, space, dtype):
    xs, gates = normal(0, dtype, m, B, *space, C), probabilities(dtype, m, n)
    ys = jax.jit(routing.cross_connect)(xs, gates)
    for form in (reference.connect, reference.connect_by_matrix):
        examples = [form(exact(xs)[:, b], exact(gates)[:, b]) for b in range(B)]
        assert_close(ys, np.stack(examples, axis=1), dtype)


def test_cross_connect_takes_every_form():
    xs, gates = normal(0, "float32", 2, B, C), probabilities("float32", 2, 3)
    stacked = routing.cross_connect(xs, gates)
    for form in (list, tuple):
        ys = routing.cross_connect(form(xs), form(gates))
        assert type(ys) is form
        np.testing.assert_allclose(jnp.stack(ys), stacked, **SINGLE)


@shapes
def test_gated_cross_connect_is_algorithm_2_and_its_backward_pass(m, n, space, dtype):
    xs, params = normal(0, dtype, m, B, *space, C), gate_params(dtype, m, n)
    dys = normal(1, dtype, n, B, *space, C)

    ys, (dxs, dparams) = run_both_ways(routing.gated_cross_connect, xs, params, dys)

    expected = reference.for_each_example(reference.algorithm_2, exact(xs), reference_gates(params))
    assert_close(ys, np.stack(expected), dtype)
    expected = reference_gradients(reference.cross_connect_backward, xs, params, dys)
    assert_close(dxs, expected[0], dtype)
    assert_close(dparams, expected[1], dtype)


@pytest.mark.usefixtures("x64")
def test_a_loss_on_gates_and_scores_goes_through_the_written_out_backward_pass():
    xs, params = normal(0, "float64", 2, B, 2, 3, C), gate_params("float64", 2, 3)

    def by_autodiff(xs, params):
        scores = jnp.stack(
            [
                routing.relevance(routing.global_average_pool(x), p)
                for x, p in zip(xs, each_gate(params), strict=True)
            ]
        )
        gates = jax.nn.softmax(scores)
        return routing.Route(routing.cross_connect(xs, gates), scores, gates)

    @functools.partial(jax.jit, static_argnums=0)
    @functools.partial(jax.value_and_grad, argnums=(2, 3))
    def loss(route, weights, xs, params):
        found = route(xs, params)
        return sum(
            w * jnp.sum(jnp.sin((1 + i) * f))
            for i, (w, f) in enumerate(zip(weights, found, strict=True))
        )

    # Each output also alone, so that the others cannot hide its errors.
    for weights in (*np.eye(3), np.ones(3)):
        found, expected = (
            loss(route, weights, xs, params) for route in (routing.route, by_autodiff)
        )
        assert max(abs(leaf).max() for leaf in jax.tree.leaves(expected[1])) > 1e-2
        assert_close(found, exact(expected), "float64")


def test_gated_cross_connect_mixes_types():
    """Maps in bfloat16 and weights in float32, as in training: each gradient has its own type."""
    m, n, space = 2, 3, (2, 3)
    xs, params = normal(0, "bfloat16", m, B, *space, C), gate_params("float32", m, n)
    dys = normal(1, "bfloat16", n, B, *space, C)
    ys, (dxs, dparams) = run_both_ways(routing.gated_cross_connect, xs, params, dys)
    assert ys.dtype == dxs.dtype == jnp.bfloat16
    _, expected = reference_gradients(reference.cross_connect_backward, xs, params, dys)
    assert_close(dparams, expected, "float32")


# --- Section 5: the simplified layer, Eqs. 7-9 ---------------------------------------------------


@pytest.mark.parametrize(("m", "n"), [(2, 3), (3, 2), (1, 2), (2, 1), (1, 1)])
def test_linear_cross_connect_is_eqs_7_to_9(m, n, dtype):
    xs, ws = normal(0, dtype, m, B, C), normal(2, dtype, m, n, C)
    dys = normal(1, dtype, n, B, C)

    ys, (dxs, dws) = run_both_ways(routing.linear_cross_connect, xs, ws, dys)

    expected = reference.for_each_example(reference.linear_cross_connect, exact(xs), exact(ws))
    assert_close(ys, np.stack(expected), dtype)
    expected = reference_gradients(reference.linear_cross_connect_backward, xs, ws, dys)
    assert_close(dxs, expected[0], dtype)
    assert_close(dws, expected[1], dtype)


# --- Custom backward passes, compared with automatic differentiation -----------------------------


def plain_linear(xs, ws):
    scores = [x @ w.T for x, w in zip(xs, ws, strict=True)]
    return routing.cross_connect(xs, [jax.nn.softmax(a) for a in scores])


def plain_gated(xs, params):
    gates = [routing.gate(x, p) for x, p in zip(xs, each_gate(params), strict=True)]
    return routing.cross_connect(xs, gates)


def linear_case(dtype, m, n):
    xs, ws = normal(0, dtype, m, B, C), normal(2, dtype, m, n, C)
    return routing.linear_cross_connect, plain_linear, (xs, ws)


def vectors_case(dtype, m, n):
    xs, params = normal(0, dtype, m, B, C), gate_params(dtype, m, n)
    return routing.gated_cross_connect, plain_gated, (xs, params)


def maps_case(dtype, m, n):
    xs, params = normal(0, dtype, m, B, 2, 3, C), gate_params(dtype, m, n)
    return routing.gated_cross_connect, plain_gated, (xs, params)


cases = pytest.mark.parametrize(
    "case", [linear_case, vectors_case, maps_case], ids=["linear", "gated vectors", "gated maps"]
)


def loss_of(layer):
    """A nonlinear loss in which every element of every output has a different weight."""

    def loss(xs, weights):
        ys = jnp.stack(list(layer(xs, weights))).astype(float)
        return jnp.sum(jnp.sin(ys) * jnp.cos(jnp.arange(ys.size)).reshape(ys.shape))

    return loss


def gradient_of(layer):
    return jax.grad(loss_of(layer), argnums=(0, 1))


def direction_in(tree):
    def direction(x):
        return jnp.sin(jnp.arange(x.size)).reshape(x.shape).astype(x.dtype)

    return jax.tree.map(direction, tree)


def reverse_over_reverse(gradient, arguments):
    """The Hessian times `direction_in`, as the gradient of its inner product with the gradient."""

    def along(arguments):
        parts = jax.tree.map(jnp.vdot, gradient(*arguments), direction_in(arguments))
        return sum(jax.tree.leaves(parts))

    return jax.grad(along)(arguments)


def forward_over_reverse(gradient, arguments):
    """The Hessian times `direction_in`, as the directional derivative of the gradient."""
    return jax.jvp(gradient, arguments, direction_in(arguments))[1]


def assert_same_norm_wise(actual, expected, relative):
    actual, expected = jax.tree.leaves(actual), jax.tree.leaves(expected)
    assert jnp.linalg.norm(expected[0]) > 0.1  # derivatives are not zero
    for a, e in zip(actual, expected, strict=True):
        # With n = 1 the gate is the constant 1, and gradients of weights are zero up to rounding.
        assert jnp.linalg.norm(a - e) <= relative * jnp.linalg.norm(e) + 1e-14


@pytest.mark.parametrize("case", [linear_case, maps_case], ids=["linear", "gated maps"])
@pytest.mark.usefixtures("x64")
def test_first_and_second_derivatives_equal_automatic_ones(case):
    layer, plain, rounded = case("bfloat16", 2, 2)
    arguments = jax.tree.map(jnp.asarray, exact(rounded))

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def derivatives(layer, ways, arguments):
        gradient = gradient_of(layer)
        return gradient(*arguments), [second(gradient, arguments) for second in ways]

    ways = (reverse_over_reverse, forward_over_reverse)
    first, seconds = derivatives(layer, ways, arguments)
    expected_first, [expected_second] = derivatives(plain, ways[:1], arguments)
    assert_same_norm_wise(first, expected_first, 1e-10)
    for second in seconds:
        assert_same_norm_wise(second, expected_second, 1e-10)

    # In the computation of a second derivative, about eight successive arrays are rounded to
    # bfloat16: outputs, cotangents, gradients, the direction, and the cotangents of these. Each
    # rounding has a relative error of up to 2^-8.
    _, [second] = derivatives(layer, ways[:1], rounded)
    assert {leaf.dtype for leaf in jax.tree.leaves(second)} == {jnp.dtype("bfloat16")}
    assert_same_norm_wise(exact(second), expected_second, 8 * 2.0**-8)


@cases
@pytest.mark.usefixtures("x64")
def test_gradients_equal_numerical_ones(case):
    layer, _, arguments = case("float64", 2, 3)
    check_grads(jax.jit(loss_of(layer)), arguments, order=1, modes=["rev"])


@pytest.mark.usefixtures("x64")
def test_jax_hessian_works():
    layer, plain, (xs, weights) = linear_case("float64", 2, 2)

    def hessian_in_an_example(layer):
        loss = loss_of(layer)
        return jax.jit(jax.hessian(lambda x: loss(xs.at[0, 0].set(x), weights)))(xs[0, 0])

    assert_same_norm_wise(hessian_in_an_example(layer), hessian_in_an_example(plain), 1e-10)


@cases
def test_forward_mode_alone_is_refused(case):
    layer, _, arguments = case("float32", 2, 3)
    with pytest.raises(TypeError, match=r"forward-mode .* use custom_vjp=False .*cross_connect"):
        jax.jvp(layer, arguments, arguments)


@cases
def test_sequence_and_stack_are_one(case):
    layer, _, (xs, weights) = case("float32", 2, 3)
    dys = normal(1, "float32", 3, *xs.shape[1:])
    expected = run_both_ways(layer, xs, weights, dys)
    ys, (dxs, dweights) = run_both_ways(layer, list(xs), weights, list(dys))
    assert isinstance(ys, list)
    assert isinstance(jax.eval_shape(layer, tuple(xs), weights), tuple)
    stacked = jnp.stack(ys), (jnp.stack(dxs), dweights)
    assert_close(stacked, exact(expected), "float32")


@cases
def test_jit_and_vmap_change_nothing(case):
    layer, _, (xs, weights) = case("float32", 2, 3)
    dys = normal(1, "float32", 3, *xs.shape[1:])
    expected = [run_both_ways(layer, factor * xs, weights, dys) for factor in (1, 2)]
    assert_close(layer(xs, weights), exact(expected[0][0]), "float32")

    several = jax.vmap(functools.partial(run_both_ways, layer), in_axes=(0, None, None))
    actual = several(jnp.stack([xs, 2 * xs]), weights, dys)
    expected = jax.tree.map(lambda *a: np.stack(a), *exact(expected))
    assert_close(actual, expected, "float32")


# --- Symmetries and limits -----------------------------------------------------------------------


@pytest.mark.usefixtures("x64")
def test_permuted_inputs_permute_only_the_sum():
    m, n, order = 3, 2, jnp.array([2, 0, 1])
    gates, us = probabilities("float64", m, n), normal(5, "float64", m, n, B, 2, 3, C)
    runs = [
        (routing.cross_predict, us, gates),
        (routing.cross_connect, us[:, 0], gates),
        *((layer, *arguments) for layer, _, arguments in (
            case("float64", m, n) for case in (linear_case, vectors_case, maps_case)
        )),
    ]  # fmt: skip
    for function, xs, weights in runs:
        permuted = jax.tree.map(lambda w: w[order], (xs, weights))
        compiled = jax.jit(function)
        np.testing.assert_allclose(
            compiled(*permuted), compiled(xs, weights), rtol=1e-13, atol=1e-14
        )


@cases
def test_extreme_scores_keep_gradients_finite(case, dtype):
    layer, _, (xs, weights) = case(dtype, 2, 3)
    ends = np.array([-1e4, 1e4, 0])
    if isinstance(weights, GateParams):
        weights = weights._replace(b2=jnp.asarray(exact(weights.b2) + ends, dtype))
    else:  # instead of a bias, a feature that is always 1
        xs, weights = exact(xs), exact(weights)
        xs[..., 0], weights[..., 0] = 1, ends
        xs, weights = jnp.asarray(xs, dtype), jnp.asarray(weights, dtype)
    dys = normal(1, dtype, 3, *xs.shape[1:])
    ys, (dxs, dweights) = run_both_ways(layer, xs, weights, dys)
    assert_finite((ys, dxs, dweights))
    # Both inputs are routed entirely to the second output, which all gradients come from.
    np.testing.assert_array_equal(exact(ys)[[0, 2]], 0)
    np.testing.assert_array_equal(exact(dxs), np.stack([exact(dys)[1]] * 2))


@cases
def test_gradients_at_zero_inputs(case, dtype):
    layer, _, (xs, weights) = case(dtype, 2, 3)
    xs, dys = jnp.zeros_like(xs), normal(1, dtype, 3, *xs.shape[1:])
    backward = (
        reference.linear_cross_connect_backward
        if case is linear_case
        else reference.cross_connect_backward
    )
    _, gradients = run_both_ways(layer, xs, weights, dys)
    assert_close(gradients, reference_gradients(backward, xs, weights, dys), dtype)
    # If all weights are zero, every gate is 1/3 and no gradient passes through it. The derivative
    # of ReLU at zero is zero.
    zeros = jax.tree.map(jnp.zeros_like, weights)
    _, gradients = run_both_ways(layer, xs, zeros, dys)
    assert_close(gradients[0], np.broadcast_to(exact(dys).mean(axis=0), xs.shape), dtype)
    assert_close(gradients[1], exact(zeros), dtype)


@cases
def test_empty_batch(case):
    layer, _, (xs, weights) = case("float32", 2, 3)
    nothing = xs[:, :0]
    ys, gradients = run_both_ways(layer, nothing, weights, jnp.zeros((3, *nothing.shape[1:])))
    assert ys.shape == (3, *nothing.shape[1:])
    assert_close(gradients, exact((nothing, jax.tree.map(jnp.zeros_like, weights))), "float32")


# --- On several devices ---------------------------------------------------------------------------
# Backward passes equal automatic differentiation also if the types of arrays include the mesh axes
# over which they vary (`jax.shard_map`) or are sharded (explicit axes).

SPLIT, SAME = PartitionSpec(None, "data"), PartitionSpec()  # b of [m b ...]; replicated


def two_devices(axis_type):
    return jax.make_mesh((2,), ("data",), axis_types=(axis_type,))


def over_two_devices(function, in_specs, out_specs):
    """Maps ``function`` over two devices by `jax.shard_map`, with its default check of axes."""
    mesh = two_devices(AxisType.Auto)
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs))


def sine_gradient(layer):
    return jax.grad(lambda xs, weights: jnp.sum(jnp.sin(layer(xs, weights))), argnums=(0, 1))


def assert_gradients_equal(actual, expected):
    jax.tree.map(functools.partial(np.testing.assert_allclose, **EXACT), actual, expected)


@cases
@pytest.mark.usefixtures("x64")
def test_a_batch_over_the_devices_of_a_shard_map(case):
    layer, plain, arguments = case("float64", 2, 3)
    gradient = over_two_devices(sine_gradient(layer), (SPLIT, SAME), (SPLIT, SAME))
    assert_gradients_equal(gradient(*arguments), jax.jit(sine_gradient(plain))(*arguments))


@cases
@pytest.mark.usefixtures("x64")
def test_weights_over_the_devices_of_a_shard_map(case):
    """The inputs are replicated on both devices, and their gradient is the sum over the devices."""
    layer, plain, (xs, weights) = case("float64", 2, 3)
    both = jax.tree.map(lambda w: jnp.stack([w, 2 * w]), weights)

    def local(xs, weights):
        dxs, dweights = sine_gradient(layer)(xs, jax.tree.map(lambda w: w[0], weights))
        return dxs, jax.tree.map(lambda w: w[None], dweights)

    over_first = PartitionSpec("data")
    found = over_two_devices(local, (SAME, over_first), (SAME, over_first))(xs, both)
    each = jax.jit(jax.vmap(sine_gradient(plain), in_axes=(None, 0)))(xs, both)
    assert_gradients_equal(found, (each[0].sum(0), each[1]))


@pytest.mark.parametrize("case", [linear_case, maps_case], ids=["linear", "gated maps"])
@pytest.mark.usefixtures("x64")
def test_second_derivatives_through_a_shard_map(case):
    layer, plain, arguments = case("float64", 2, 2)
    mapped = over_two_devices(layer, (SPLIT, SAME), SPLIT)
    found, expected = (
        jax.jit(functools.partial(reverse_over_reverse, sine_gradient(f)))(arguments)
        for f in (mapped, plain)
    )
    assert_same_norm_wise(found, expected, 1e-10)


@cases
@pytest.mark.parametrize("placed", ["weights on the mesh", "weights on no mesh"])
@pytest.mark.usefixtures("x64")
def test_a_batch_split_along_an_explicit_axis(case, placed):
    layer, plain, (xs, weights) = case("float64", 2, 3)
    expected = jax.jit(sine_gradient(plain))(xs, weights)
    mesh = two_devices(AxisType.Explicit)
    with jax.set_mesh(mesh):
        split = jax.device_put(xs, NamedSharding(mesh, SPLIT))
        if placed == "weights on the mesh":
            weights = jax.device_put(weights, NamedSharding(mesh, SAME))
        found = jax.jit(sine_gradient(layer))(split, weights)
    assert jax.typeof(found[0]).sharding.spec[1] == "data"
    assert_gradients_equal(found, expected)


@pytest.mark.usefixtures("x64")
def test_cross_predict_of_a_batch_split_along_an_explicit_axis():
    us, gates = normal(0, "float64", 3, 2, B, 2, 3, C), probabilities("float64", 3, 2)
    expected = jax.jit(sine_gradient(routing.cross_predict))(us, gates)
    mesh = two_devices(AxisType.Explicit)
    with jax.set_mesh(mesh):
        where = NamedSharding(mesh, PartitionSpec(None, None, "data")), NamedSharding(mesh, SPLIT)
        found = jax.jit(sine_gradient(routing.cross_predict))(*jax.device_put((us, gates), where))
    assert_gradients_equal(found, expected)


# --- Memory --------------------------------------------------------------------------------------
# Maps are larger than all weights together here, so that arrays as large as a map consist of maps.

M, N, MAP = 2, 3, (4, 5, 7, 6)
VECTORS = (140, 6)  # as many elements, for the layer without maps
memory_cases = pytest.mark.parametrize("name", ["linear", "gated"])
forms = pytest.mark.parametrize("form", ["sequence", "stacked"])


def memory_case(name, form, dtype="float32"):
    if name == "linear":
        layer, shape, weights = routing.linear_cross_connect, VECTORS, normal(2, dtype, M, N, 6)
    else:
        layer, shape, weights = routing.gated_cross_connect, MAP, gate_params(dtype, M, N, c=6)
    xs = normal(0, dtype, M, *shape)
    return layer, (xs if form == "stacked" else list(xs)), weights


def outer_product_connect(xs, weights):
    """A wasteful implementation of Eq. 5, which computes all products ``g_ij X_i`` at once."""
    xs = jnp.stack(xs) if isinstance(xs, list) else xs
    gates = jax.nn.softmax(
        jnp.einsum("mb...c,mnc->mnb...c", xs, weights).mean(-1, keepdims=True), axis=1
    )
    return (gates * jnp.broadcast_to(xs[:, None], (M, N, *xs.shape[1:]))).sum(0)


def arrays_of(jaxpr):
    """Yields the shapes and types of all results in a jaxpr and in the jaxprs within it."""
    for equation in jaxpr.eqns:
        yield from (variable.aval for variable in equation.outvars)
        for inner in jax.tree.leaves(tuple(equation.params.values())):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from arrays_of(inner)


def outer_products(function, *arguments):
    """The arrays with at least as many elements as ``[m n b h w c]``, in any layout."""
    size = M * N * np.prod(MAP)
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    return [array for array in arrays_of(jaxpr) if array.size >= size]


@memory_cases
@forms
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_outer_product_in_either_direction(name, form, dtype):
    layer, xs, weights = memory_case(name, form, dtype)
    assert outer_products(layer, xs, weights) == []
    run = jax.value_and_grad(loss_of(layer), argnums=(0, 1))
    assert outer_products(run, xs, weights) == []
    assert outer_products(jax.jit(run), xs, weights) == []


def kept_maps(layer, xs, weights):
    """The arrays as large as a map that the forward pass keeps for the backward pass."""
    _, backward = jax.jit(lambda *arguments: jax.vjp(layer, *arguments))(xs, weights)
    return [kept for kept in jax.tree.leaves(backward) if kept.size >= np.prod(MAP)]


@memory_cases
@forms
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_backward_pass_keeps_no_map_but_the_inputs(name, form, dtype):
    layer, xs, weights = memory_case(name, form, dtype)
    kept = kept_maps(layer, xs, weights)
    inputs = [np.asarray(x) for x in xs]
    assert sum(k.size for k in kept) == sum(x.size for x in inputs)
    for k in kept:
        for x in np.asarray(k).reshape(-1, *inputs[0].shape):
            assert any(x.dtype == i.dtype and np.array_equal(x, i) for i in inputs)


def test_outer_products_are_found():
    """Shows that the two tests above can fail."""
    _, xs, weights = memory_case("linear", "stacked")
    assert outer_products(outer_product_connect, xs, weights)
    hidden = jax.checkpoint(jax.jit(outer_product_connect))
    assert outer_products(hidden, xs, weights)
    assert sum(k.size for k in kept_maps(outer_product_connect, xs, weights)) > xs.size


# --- Errors --------------------------------------------------------------------------------------


def zeros(*shape):
    return jnp.zeros(shape)


def zero_gates(w1, b1, w2, b2):
    return GateParams(zeros(*w1), zeros(*b1), zeros(*w2), zeros(*b2))


TWO = zeros(2, 4, 5)  # two inputs [b c], or gates [b n] for two inputs
PARAMS = zero_gates((2, 5, 6), (2, 6), (2, 6, 3), (2, 3))  # valid for two gates and 5 channels
ONE = zero_gates((5, 6), (6,), (6, 3), (3,))  # valid for one gate

ERRORS = {
    # name: (function, arguments, part of the error message)
    "gate: channels": ("gate", (zeros(4, 7), ONE), "(5, 6)"),
    "gate: no hidden units": (
        "gate", (zeros(4, 5), zero_gates((5, 0), (0,), (0, 3), (3,))), "(5, 0)"
    ),
    "gate: no channels": ("gate", (zeros(4, 0), zero_gates((0, 6), (6,), (6, 3), (3,))), "(0, 6)"),
    "gate: several gates": ("gate", (zeros(4, 5), PARAMS), "(2, 5, 6)"),
    "gate: b1": ("gate", (zeros(4, 5), ONE._replace(b1=zeros(1))), "(1,)"),
    "gate: w2": ("gate", (zeros(4, 5), ONE._replace(w2=zeros(7, 3))), "(7, 3)"),
    "gate: b2": ("gate", (zeros(4, 5), ONE._replace(b2=zeros(1))), "(1,)"),
    "relevance: no hidden units": (
        "relevance", (zeros(4, 5), zero_gates((5, 0), (0,), (0, 3), (3,))), "(5, 0)"
    ),
    "pool: no channels": ("global_average_pool", (zeros(4, 2, 3, 0),), "(4, 2, 3, 0)"),
    "pool: no pixels": ("global_average_pool", (zeros(4, 0, 3, 5),), "(4, 0, 3, 5)"),
    "relevance: channels": ("relevance", (zeros(4, 7), ONE), "(5, 6)"),
    "cross_predict: no inputs": ("cross_predict", ([], []), "[]"),
    "cross_predict: no channels": (
        "cross_predict", (zeros(2, 3, 4, 0), zeros(2, 4, 3)), "channels and pixels, got (4, 0)"
    ),
    "cross_predict: unequal": (
        "cross_predict", ([[zeros(4, 5), zeros(4, 6)]], [zeros(4, 2)]), "(4, 6)"
    ),
    "cross_predict: gates of one input": ("cross_predict", ([TWO, TWO], [zeros(4, 2)]), "(4, 2)"),
    "cross_predict: gates of more outputs": ("cross_predict", ([TWO], [zeros(4, 3)]), "3"),
    "cross_predict: gates of another batch": ("cross_predict", ([TWO], [zeros(7, 2)]), "(7, 2)"),
    "cross_predict: no prediction": (
        "cross_predict", ([[], [zeros(4, 5)]], zeros(2, 4, 1)), "[0, 1]"
    ),
    "cross_connect: no inputs": ("cross_connect", ([], []), "[]"),
    "cross_connect: no channels": (
        "cross_connect", (zeros(2, 4, 0), TWO), "channels and pixels, got (4, 0)"
    ),
    "cross_connect: no pixels": (
        "cross_connect", (zeros(2, 4, 0, 3, 5), TWO), "channels and pixels, got (4, 0, 3, 5)"
    ),
    "cross_connect: unequal": ("cross_connect", ([zeros(4, 5), zeros(4, 6)], TWO), "(4, 6)"),
    "cross_connect: whole numbers": (
        "cross_connect", ([zeros(4, 5).astype(int)] * 2, TWO), "int"
    ),
    "cross_connect: two types": (
        "cross_connect", ([zeros(4, 5), zeros(4, 5).astype(jnp.bfloat16)], TWO), "bfloat16, float32"
    ),
    "cross_connect: no batch": ("cross_connect", (zeros(2, 5), TWO), "(5,)"),
    "cross_connect: gates of more inputs": ("cross_connect", (TWO, zeros(3, 4, 2)), "(4, 2)"),
    "cross_connect: gates of another batch": ("cross_connect", (TWO, zeros(2, 1, 3)), "(1, 3)"),
    "cross_connect: gates of many shapes": (
        "cross_connect", (TWO, [zeros(4, 2), zeros(4, 3)]), "(4, 3)"
    ),
    "cross_connect: gates without batch": ("cross_connect", (TWO, zeros(2, 3)), "(3,)"),
    "cross_connect: no outputs": ("cross_connect", (TWO, zeros(2, 4, 0)), "(4, 0)"),
    "linear: no channels": (
        "linear_cross_connect", (zeros(2, 4, 0), zeros(2, 3, 0)), "channels and pixels, got (4, 0)"
    ),
    "linear: unequal": (
        "linear_cross_connect", ([zeros(4, 5), zeros(4, 6)], zeros(2, 3, 5)), "(4, 6)"
    ),
    "linear: maps": ("linear_cross_connect", (zeros(2, 4, 2, 3, 5), zeros(2, 3, 5)), "(2, 3, 5)"),
    "linear: weights without paths": ("linear_cross_connect", (TWO, zeros(3, 5)), "(3, 5)"),
    "linear: weights of more inputs": ("linear_cross_connect", (TWO, zeros(3, 3, 5)), "(3, 3, 5)"),
    "linear: weights [m k n]": ("linear_cross_connect", (TWO, zeros(2, 5, 3)), "(2, 5, 3)"),
    "linear: no outputs": ("linear_cross_connect", (TWO, zeros(2, 0, 5)), "(2, 0, 5)"),
    "gated: no inputs": ("gated_cross_connect", ([], PARAMS), "[]"),
    "gated: no channels": (
        "gated_cross_connect",
        (zeros(2, 4, 2, 0), zero_gates((2, 0, 6), (2, 6), (2, 6, 3), (2, 3))),
        "channels and pixels, got (4, 2, 0)",
    ),
    "gated: no hidden units": (
        "gated_cross_connect", (TWO, zero_gates((2, 5, 0), (2, 0), (2, 0, 3), (2, 3))), "(2, 5, 0)"
    ),
    "gated: unequal": ("gated_cross_connect", ([zeros(4, 5), zeros(4, 6)], PARAMS), "(4, 6)"),
    "gated: a single gate": ("gated_cross_connect", (TWO, ONE), "(5, 6)"),
    "gated: more inputs": ("gated_cross_connect", (zeros(3, 4, 5), PARAMS), "(2, 5, 6)"),
    "gated: channels": ("gated_cross_connect", (zeros(2, 4, 7), PARAMS), "(2, 5, 6)"),
    "gated: b1": ("gated_cross_connect", (TWO, PARAMS._replace(b1=zeros(2, 1))), "(2, 1)"),
    "gated: w2 of one gate": (
        "gated_cross_connect", (TWO, PARAMS._replace(w2=zeros(1, 6, 3))), "(1, 6, 3)"
    ),
    "gated: w2": ("gated_cross_connect", (TWO, PARAMS._replace(w2=zeros(2, 7, 3))), "(2, 7, 3)"),
    "gated: b2": ("gated_cross_connect", (TWO, PARAMS._replace(b2=zeros(2, 1))), "(2, 1)"),
    "gated: no outputs": (
        "gated_cross_connect", (TWO, PARAMS._replace(w2=zeros(2, 6, 0), b2=zeros(2, 0))), "(2, 0)"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "arguments", "shape"), ERRORS.values(), ids=ERRORS)
def test_wrong_shapes_are_named(name, arguments, shape):
    # Unwrapped, without the check of annotations that only the tests enable.
    function = inspect.unwrap(getattr(routing, name))
    who = "(gate|relevance)" if name in ("gate", "relevance") else name
    with pytest.raises(ValueError, match=f"^{who}: .*{re.escape(shape)}"):
        function(*arguments)
