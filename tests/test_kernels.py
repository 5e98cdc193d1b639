"""`multipath_jax.kernels`: the Pallas kernels against `routing.XLA`, run as ordinary JAX code."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from multipath_jax import kernels, routing
from multipath_jax.layers import CrossConnect, OneToMany
from multipath_jax.routing import GateParams

D = 6  # hidden width of a gate
PALLAS = kernels.pallas_passes(interpret=True)

# Both forms do the same in float32, in another order of summation. The longest sums are those of
# the parameters' gradients: over batch, pixels and channels, at most 140 x 12 x 130 products, but
# rounding errors of random sign grow with the root: 500 x 2^-24 = 3e-5 of the largest number.
SINGLE = 3e-5
# Maps in bfloat16 are rounded once, at the end of float32 sums that differ as above: to the nearest
# of two neighbours, 2^-8 apart, or where the sums lie on two sides of the middle, to either.
HALF = 2.0**-7

# m, n and [b ... c]. Blocks are of 128 examples where these outnumber the channels, and of 8 or 16
# elsewhere: the last block of the second and of the third is not full.
SHAPES = [
    (1, 2, (4, 3, 5, 3)),
    (2, 2, (140, 2, 2, 5)),
    (2, 3, (20, 4, 3, 130)),
    (3, 2, (3, 7, 7, 8)),
    (3, 3, (9, 1, 1, 4)),
    (2, 1, (5, 6, 7)),
    (1, 1, (1, 2, 3, 2, 6)),
]
shapes = pytest.mark.parametrize(("m", "n", "shape"), SHAPES, ids=str)


def normal(seed, shape, dtype="float32"):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def maps(seed, count, shape, dtype):
    return [normal(seed + i, shape, dtype) for i in range(count)]


def gate_params(m, n, c):
    shapes = GateParams(w1=(m, c, D), b1=(m, D), w2=(m, D, n), b2=(m, n))
    return GateParams(*(normal(10 + i, shape) for i, shape in enumerate(shapes)))


@functools.partial(jax.jit, static_argnums=0)
def run_both_ways(passes, xs, params, dys):
    """Outputs, residuals and gradients."""
    ys, residuals = passes.forward(tuple(xs), params)
    again, pull = jax.vjp(lambda *a: routing.gated_cross_connect(*a, passes=passes), xs, params)
    return list(ys), residuals, passes.backward(residuals, tuple(dys)), again, pull(dys)


def small_blocks(monkeypatch):
    """Several blocks where one could hold all."""
    monkeypatch.setattr(kernels, "_BLOCK", 0)


def assert_close(actual, expected):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert (a.dtype, a.shape) == (e.dtype, e.shape)
        tolerance = HALF if a.dtype == jnp.bfloat16 else SINGLE
        a, e = (np.asarray(x, np.float64) for x in (a, e))
        np.testing.assert_allclose(a, e, rtol=tolerance, atol=SINGLE * max(1, np.abs(e).max()))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@shapes
def test_both_kernels_are_the_xla_form(m, n, shape, dtype, monkeypatch):
    small_blocks(monkeypatch)
    xs, dys = maps(0, m, shape, dtype), maps(20, n, shape, dtype)
    params = gate_params(m, n, shape[-1])
    assert kernels.supported(xs, params)
    actual, expected = (run_both_ways(p, xs, params, dys) for p in (PALLAS, routing.XLA))
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    assert_close(actual, expected)


def test_what_runs_is_a_kernel():
    xs, params = maps(0, 2, (4, 3, 3, 5), "float32"), gate_params(2, 2, 5)
    text = str(jax.make_jaxpr(functools.partial(run_both_ways, PALLAS))(xs, params, xs))
    assert text.count("pallas_call[") >= 2
    text = str(jax.make_jaxpr(functools.partial(run_both_ways, routing.XLA))(xs, params, xs))
    assert "pallas_call[" not in text


def test_passes_are_one_object_so_that_functions_are_compiled_once():
    assert kernels.pallas_passes() is kernels.pallas_passes()
    assert len({kernels.pallas_passes(), PALLAS, routing.XLA}) == 3


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        ((128, 16, 16, 32), "bfloat16", True),
        ((256, 28, 28, 128), "bfloat16", True),
        ((256, 7, 7, 512), "float32", True),
        ((256, 56, 56, 64), "bfloat16", False),  # 128 examples at once: 51 MB a map
        ((1, 1024, 1024, 128), "float32", False),
        ((128, 32), "float32", False),  # vectors
        ((0, 4, 4, 8), "float32", False),
        ((4, 0, 4, 8), "float32", False),
        ((4, 4, 4, 8), "float16", False),
    ],
    ids=str,
)
def test_supported_tells_what_the_kernels_take(shape, dtype, expected):
    answers, params = [], gate_params(2, 2, shape[-1])
    x = jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))
    jax.eval_shape(lambda *xs: answers.append(kernels.supported(xs, params)), x, x)
    assert answers == [expected]


@pytest.mark.parametrize(("shape", "dtype"), [((4, 3), "float32"), ((4, 2, 2, 3), "float64")])
def test_what_is_not_supported_takes_the_xla_form(shape, dtype, x64):
    xs = maps(0, 2, shape, dtype)
    params = gate_params(2, 2, 3)
    assert not kernels.supported(xs, params)
    actual, expected = (run_both_ways(p, xs, params, xs) for p in (PALLAS, routing.XLA))
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_gates_of_more_than_float32_take_the_xla_form(x64):
    xs = maps(0, 2, (4, 2, 2, 3), "float32")
    params = jax.tree.map(lambda p: p.astype("float64"), gate_params(2, 2, 3))
    assert not kernels.supported(xs, params)


def test_devices_that_have_no_kernels_take_the_xla_form():
    xs, params = maps(0, 2, (4, 3, 3, 5), "bfloat16"), gate_params(2, 2, 5)
    compiled = kernels.pallas_passes()
    actual, expected = (run_both_ways(p, xs, params, xs) for p in (compiled, routing.XLA))
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize("passes", [PALLAS, kernels.pallas_passes()], ids=["kernel", "default"])
def test_a_second_derivative_is_refused_and_names_the_way_out(passes):
    xs, params = maps(0, 2, (4, 3, 3, 5), "float32"), gate_params(2, 2, 5)

    def loss(xs):
        return sum(jnp.sum(y**2) for y in routing.gated_cross_connect(xs, params, passes))

    def slope(xs):
        return sum(jnp.sum(dx**2) for dx in jax.grad(loss)(xs))

    assert all(jnp.isfinite(dx).all() for dx in jax.grad(loss)(xs))
    with pytest.raises(NotImplementedError, match=re.escape("routing.XLA (passes='xla')")):
        jax.grad(slope)(xs)


# --- For a TPU -----------------------------------------------------------------------------------

ROUTERS = [
    (1, 2, (128, 32, 32, 3)),
    (2, 2, (128, 8, 8, 128)),
    (3, 3, (64, 32, 32, 16)),
    (2, 2, (250, 7, 7, 512)),
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("m", "n", "shape"), ROUTERS, ids=str)
def test_both_kernels_are_lowered_for_a_tpu(m, n, shape, dtype):
    x = jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))
    params = gate_params(m, n, shape[-1])
    function = functools.partial(run_both_ways, kernels.pallas_passes())

    def kernels_for(platform):
        lowered = export.export(jax.jit(function), platforms=[platform])([x] * m, params, [x] * n)
        return lowered.mlir_module().count("tpu_custom_call")

    assert kernels_for("tpu") >= 2
    assert kernels_for("cpu") == 0


# --- The layer -----------------------------------------------------------------------------------


@pytest.mark.parametrize("router", [CrossConnect, OneToMany])
def test_the_layer_hands_passes_through(router, monkeypatch):
    from multipath_jax.layers import routers

    monkeypatch.setitem(routers._PASSES, "pallas", PALLAS)
    xs = normal(0, (4, 5, 5, 6) if router is OneToMany else (3, 4, 5, 5, 6))
    variables = router(2).init(jax.random.key(0), xs)

    def loss(params, xs, passes):
        ys = router(2, passes=passes).apply({"params": params}, xs)
        return jnp.sum(jnp.sin(ys)), ys

    def gradient(passes):
        return functools.partial(jax.value_and_grad(loss, (0, 1), has_aux=True), passes=passes)

    arguments = (variables["params"], xs)
    assert "pallas_call[" in str(jax.make_jaxpr(gradient("pallas"))(*arguments))
    assert "pallas_call[" not in str(jax.make_jaxpr(gradient("xla"))(*arguments))
    assert_close(gradient("pallas")(*arguments), gradient("xla")(*arguments))


def test_the_layer_names_passes_that_it_does_not_know():
    with pytest.raises(ValueError, match=r"CrossConnect \(top\): passes is 'xla' or 'pallas'"):
        CrossConnect(2, passes="triton").init(jax.random.key(0), normal(0, (2, 4, 5, 5, 6)))
