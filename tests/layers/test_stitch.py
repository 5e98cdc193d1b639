"""Cross-stitch units against their definition."""

import jax
import numpy as np
import pytest

from multipath_jax.layers import CrossStitch

MAPS = jax.random.normal(jax.random.key(0), (3, 2, 4, 4, 5))  # m b h w c


@pytest.mark.parametrize("xs", [MAPS, MAPS[:1], MAPS[:, :, 0, 0], list(MAPS)])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_outputs_are_the_learned_mixtures(xs, n):
    unit = CrossStitch(n)
    coefficients = np.random.default_rng(0).normal(size=(len(xs), n)).astype(np.float32)
    ys = unit.apply({"params": {"coefficients": coefficients}}, xs)
    assert ys.shape == (n, *xs[0].shape)
    for j in range(n):
        expected = sum(coefficients[i, j] * np.asarray(xs[i]) for i in range(len(xs)))
        np.testing.assert_allclose(ys[j], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("m", "n", "expected"),
    [
        (1, 3, [[1, 1, 1]]),
        (2, 2, [[0.9, 0.1], [0.1, 0.9]]),
        (3, 3, [[0.9, 0.05, 0.05], [0.05, 0.9, 0.05], [0.05, 0.05, 0.9]]),
        (2, 3, [[0.9, 0.1, 0.9], [0.1, 0.9, 0.1]]),
    ],
)
def test_coefficients_begin_as_convex_combinations_that_favour_the_own_path(m, n, expected):
    params = CrossStitch(n).init(jax.random.key(0), MAPS[:m])["params"]
    np.testing.assert_allclose(params["coefficients"], expected, rtol=1e-6)
    np.testing.assert_allclose(params["coefficients"].sum(0), 1, rtol=1e-6)


def test_coefficients_are_no_gates_in_the_records():
    variables = CrossStitch(2).init(jax.random.key(0), MAPS)
    _, recorded = CrossStitch(2).apply(variables, MAPS, mutable=["intermediates"])
    assert set(recorded["intermediates"]) == {"input_strength", "output_strength"}


def test_unequal_shapes_are_refused():
    with pytest.raises(ValueError, match="CrossStitch"):
        CrossStitch(2).init(jax.random.key(0), [MAPS[0], MAPS[1, :, :2]])
