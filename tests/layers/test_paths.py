"""`Parallel`: stacked parameters, and two kinds of execution with equal results."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multipath_jax.layers import ConvStage, Parallel

PATHS = 3


@pytest.fixture
def xs():
    return jax.random.normal(jax.random.key(1), (PATHS, 2, 4, 4, 5))


def run(stage, xs, execution="unrolled", train=True):
    module = Parallel(stage, execution)
    variables = module.init(jax.random.key(0), xs, train=False)
    out, updates = module.apply(variables, xs, train=train, mutable=["batch_stats"])
    return variables, out, updates


def test_each_path_has_parameters_of_its_own_on_a_leading_axis(xs):
    variables, _, _ = run(ConvStage((6,)), xs)
    kernel = variables["params"]["conv_1"]["conv"]["kernel"]
    assert kernel.shape == (PATHS, 3, 3, 5, 6)
    assert not np.allclose(kernel[0], kernel[1])
    assert variables["batch_stats"]["conv_1"]["norm"]["mean"].shape == (PATHS, 6)


def test_each_path_computes_what_the_module_alone_would(xs):
    stage = ConvStage((6, 7), pool=True)
    variables, out, updates = run(stage, xs)
    for i in range(PATHS):
        own = jax.tree.map(lambda v, i=i: v[i], variables)
        alone, alone_updates = stage.apply(own, xs[i], train=True, mutable=["batch_stats"])
        # The operations are the same, but XLA may sum in a different order.
        np.testing.assert_allclose(out[i], alone, rtol=1e-5, atol=1e-5)
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-6),
            updates,
            alone_updates,
        )


def test_grouped_execution_changes_no_parameter_and_no_result(xs):
    def loss(variables, execution):
        module = Parallel(ConvStage((6, 7)), execution)
        out, _ = module.apply(variables, xs, train=True, mutable=["batch_stats"])
        return jnp.sum(jnp.sin(out)), out

    unrolled, _, _ = run(ConvStage((6, 7)), xs)
    grouped, _, _ = run(ConvStage((6, 7)), xs, "grouped")
    jax.tree.map(np.testing.assert_array_equal, unrolled, grouped)
    results = [
        jax.value_and_grad(loss, has_aux=True)(unrolled, execution)
        for execution in ("unrolled", "grouped")
    ]
    # Grouped convolutions sum in a different order: float32 rounding of a few hundred terms.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), *results)


def test_takes_a_sequence_and_any_module(xs):
    out, variables = Parallel(nn.Dense(2)).init_with_output(jax.random.key(0), list(xs))
    assert out.shape == (PATHS, 2, 4, 4, 2)
    assert variables["params"]["kernel"].shape == (PATHS, 5, 2)


@pytest.mark.parametrize(
    ("xs", "execution", "message"),
    [
        ([jnp.ones((2, 3)), jnp.ones((2, 4))], "unrolled", r"\(2, 3\), \(2, 4\)"),
        ([], "unrolled", "one or more parallel tensors"),
        (jnp.ones((2, 3)), "unrolled", r"Parallel .*\(3,\), \(3,\)"),
        (jnp.ones((2, 3, 4)), "folded", "'unrolled' or 'grouped', not 'folded'"),
    ],
)
def test_what_does_not_fit_names_the_layer_and_the_shapes(xs, execution, message):
    with pytest.raises(ValueError, match=message):
        Parallel(nn.Dense(2), execution).init(jax.random.key(0), xs)
