"""The work of a training step, counted by hand, and the lower bound on its time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multipath_jax import create_model
from multipath_jax.benchmark import limit
from multipath_jax.benchmark.settings import Problem, Settings
from multipath_jax.models.complexity import complexity

TINY = Settings("cpu", True, 3, 0.0, 1.0, 64, 1 << 20)


def counted(function, *shapes):
    program = jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes))
    return list(limit._products(program.jaxpr))


def test_a_matrix_product():
    assert counted(jnp.matmul, (3, 4), (4, 5)) == [(2 * 3 * 4 * 5, 4 * (12 + 20 + 15))]


def test_a_loop_does_its_work_as_often_as_it_is_long():
    def many(x, ws):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, ws)[0]

    assert counted(many, (3, 4), (6, 4, 4)) == [(2 * 3 * 4 * 4, 4 * (12 + 16 + 12))] * 6


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_and_its_gradients_do_as_much_each(stride):
    """The gradient of the input dilates the map with zeros; multiplying by them is not counted."""

    def conv(x, w):
        return jax.lax.conv_general_dilated(
            x, w, (stride, stride), [(1, 1)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def all_three(x, w):
        y, pull = jax.vjp(conv, x, w)
        return y, pull(y)

    found = [operations for operations, _ in counted(all_three, (2, 8, 8, 3), (3, 3, 3, 5))]
    assert found == [2 * 2 * (8 // stride) ** 2 * 9 * 3 * 5] * 3


@pytest.mark.slow
def test_a_training_step_computes_three_times_what_a_forward_pass_does():
    name = "ResNet8-2-CC"
    size = complexity(create_model(name), (32, 32, 3))
    full, half = (
        limit.step_work(Problem(name, 64, (32, 32, 3), 10, dtype))
        for dtype in ("float32", "bfloat16")
    )
    # Less than 3, because the gradient of the images is not computed.
    assert 2.8 < full.operations.sum() / (2 * 64 * size.multiply_adds) < 3.0
    assert full.moved[-1] == 16 * size.params
    # All arrays except parameters and gates have the type of the network.
    assert 0.5 < half.moved.sum() / full.moved.sum() < 0.55
    np.testing.assert_array_equal(half.operations, full.operations)


def test_the_least_is_the_longer_of_computing_and_moving_thing_by_thing():
    work = limit.Work(np.array([100.0, 10.0]), np.array([5.0, 40.0]))
    seconds = work.seconds(np.array([10.0, 100.0]), np.array([5.0, 10.0]))
    np.testing.assert_allclose(seconds, [10 + 8, 1 + 4])


def test_a_step_is_measured_against_its_limit(monkeypatch):
    monkeypatch.setattr(limit, "compiled", lambda *_: {"step": lambda calls: 2.0 * calls})
    yardsticks = {"product": lambda calls: 1.0 * calls, "copy": lambda calls: 1.0 * calls}
    monkeypatch.setattr(limit, "_yardsticks", lambda _: (yardsticks, 4.0, 8.0))
    monkeypatch.setattr(limit, "step_work", lambda _: limit.Work(np.ones(1), np.full(1, 10.0)))
    (row,) = limit._limit(TINY, Problem("N", 3, (4, 4, 3), 5, "float32"))
    assert row.ratio.median == pytest.approx(2.0 / (10.0 / 8.0))
    assert row.figures["step images/s"] == 1.5
    assert row.figures["limit ms"] == 1250.0


def test_the_yardsticks_run():
    pieces, operations, moved = limit._yardsticks(TINY)
    assert pieces["product"](1) > 0
    assert pieces["copy"](1) > 0
    assert (operations, moved) == (2 * 1024**3, 1 << 20)
