"""The bytes that a router must move, counted by hand, and the comparisons on small routers."""

from functools import partial

import jax
import numpy as np
import pytest

from multipath_jax import routing
from multipath_jax.benchmark import routers
from multipath_jax.benchmark.routers import RouterShape
from multipath_jax.benchmark.settings import Problem, Settings

TINY = Settings(
    platform="cpu",
    quick=True,
    rounds=3,
    at_least=0.0,
    budget=1.0,
    batch_divisor=64,
    router_bytes=1,
)


def test_what_a_router_must_move_counted_by_hand():
    shape = RouterShape(m=2, n=3, batch=4, features=(5, 6, 7))
    tensor = 4 * 5 * 6 * 7  # 840 numbers
    assert shape.forward_bytes("float32") == 5 * tensor * 4  # 2 read, 3 written
    assert shape.backward_bytes("float32") == 7 * tensor * 4  # 2 + 3 read, 2 written
    assert shape.forward_bytes("bfloat16") == 5 * tensor * 2


def test_a_larger_batch_fills_the_bytes_asked_for():
    shape = RouterShape(2, 2, 4, (5, 6, 7))  # 3360 bytes per example
    assert shape.at_least(1_000_000, "float32").batch == 298
    assert shape.at_least(1, "float32") == shape


def test_the_shapes_are_those_of_the_network():
    problem = Problem("BaseCNN-3-CC", 16, (32, 32, 3), 10, "float32")
    assert routers.router_shapes(problem) == [
        RouterShape(1, 3, 16, (32, 32, 3)),
        RouterShape(3, 3, 16, (16, 16, 32)),
        RouterShape(3, 3, 16, (8, 8, 64)),
        RouterShape(3, 3, 16, (8, 8, 128)),
        RouterShape(3, 3, 16, (32,)),
    ]


def test_both_backward_passes_are_of_one_function():
    xs, params, dys = routers.random_router(RouterShape(2, 3, 4, (5, 5, 6)), "float32")
    expected, found = (
        jax.jit(partial(routers.forward_and_backward, function))(xs, params, dys)
        for function in (routing.gated_cross_connect, routers.by_autodiff)
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_limit_of_small_routers():
    shapes = routers.large_routers(TINY)
    rows = [row for shape in shapes for row in routers.against_copy(TINY, shape)]
    assert len(rows) == 2 * 4  # forward and backward, for the routers on maps of BaseCNN-2-CC
    moved = {row.compared.split()[0]: row.figures["to move MB"] for row in rows[2:4]}
    tensor = 2 * 16 * 16 * 32 * 4 / 1e6
    assert moved == pytest.approx({"forward": 4 * tensor, "backward": 6 * tensor})
    for row in rows:
        assert row.ratio.low <= row.ratio.median <= row.ratio.high
        assert row.target is None  # there is no target on CPUs
        direction = row.compared.split()[0]
        assert row.figures["copy GB/s"] * row.figures["limit ms"] == pytest.approx(
            row.figures["to move MB"]
        )
        assert row.figures[f"{direction} ms"] > 0
