"""The cost of compiled programs, compared with known values."""

from unittest import mock

import jax
import jax.numpy as jnp

from multipath_jax.parallel.compilation import Cost, flops, peak_bytes

A, B = jnp.ones((64, 128)), jnp.ones((128, 256))
PRODUCT = 2 * 64 * 128 * 256


def test_the_operations_of_a_product():
    assert flops(jax.jit(jnp.dot).lower(A, B)) == PRODUCT


def test_a_step_counts_once_however_often_it_is_repeated():
    def many(count, a, b):
        return jax.lax.fori_loop(0, count, lambda _, c: c + a @ b, jnp.zeros((64, 256)))

    counted = flops(jax.jit(many).lower(jnp.int32(0), A, B))
    assert PRODUCT <= counted < 1.01 * PRODUCT + 64 * 256  # also the sum of the products


def test_the_memory_of_a_product():
    compiled = jax.jit(jnp.dot).lower(A, B).compile()
    assert peak_bytes(compiled) >= A.nbytes + B.nbytes + 4 * 64 * 256


def test_what_the_backend_does_not_tell_is_left_out():
    silent = mock.Mock(spec=jax.stages.Compiled)
    silent.memory_analysis.return_value = None
    assert peak_bytes(silent) is None
    lowered = mock.Mock(spec=jax.stages.Lowered)
    lowered.cost_analysis.return_value = None
    assert flops(lowered) is None
    assert str(Cost(1.25, None, None)) == "1.2 s"
    assert str(Cost(1.0, 2.5e9, 3_000_000)) == "1.0 s, 2.50 GFLOPs a step, 3 MB at its peak"
