"""Tests of Fig. 11: the distance, against its definition, and the compared layers and paths."""

import numpy as np
import pytest
import small_networks

from multipath_jax.figures import weights
from multipath_jax.gates import outline


def by_definition(a, b):
    """The largest difference between the two empirical distribution functions."""
    both = np.concatenate([a, b])
    return max(abs((a <= x).mean() - (b <= x).mean()) for x in both)


def test_the_distance_is_that_of_kolmogorov_and_smirnov():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=40), rng.normal(0.7, 2, size=70)
    assert weights.distance(a, b) == pytest.approx(by_definition(a, b), abs=1e-12)
    assert weights.distance(a, a) == 0
    assert weights.distance(a, a + 100) == 1


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("CC", ["stage_1/conv_1/conv", "dense_1/dense"]),
        ("CP", ["stage_1/conv_1/conv", "router_2/prediction/conv", "dense_1/dense"]),
    ],
)
def test_layers_of_parallel_paths_are_found_in_order(kind, expected):
    trained = small_networks.network(kind)
    found = weights.parallel_layers(trained.variables["params"], outline(trained, (8, 8, 2)))
    assert found == expected


def test_one_path_has_nothing_to_compare():
    trained = small_networks.without_routers()
    found = weights.parallel_layers(trained.variables["params"], outline(trained, (8, 8, 2)))
    assert found == []


def test_three_paths_have_three_distances_each_from_its_own_kernels():
    trained, name = small_networks.network(paths=3), "stage_1/conv_1/conv"
    kernel = np.array(trained.variables["params"]["stage_1"]["conv_1"]["conv"]["kernel"])
    kernel[1] *= 3
    kernel[2] = kernel[0]
    trained.variables["params"]["stage_1"]["conv_1"]["conv"]["kernel"] = kernel
    (found,) = weights.layer_weights(trained, [name], (8, 8, 2))
    np.testing.assert_array_equal(found.weights, kernel.reshape(3, -1))
    expected = {
        (i + 1, j + 1): by_definition(kernel[i].ravel(), kernel[j].ravel())
        for i, j in ((0, 1), (0, 2), (1, 2))
    }
    assert found.distances == pytest.approx(expected, abs=1e-6)
    assert found.distances[1, 3] == 0
    assert found.distance == pytest.approx(np.mean(list(expected.values())), abs=1e-6)


def test_an_untrained_network_is_as_far_from_itself_as_it_says():
    fresh = small_networks.network(seed=5)
    (found,) = weights.layer_weights(fresh, ["stage_1/conv_1/conv"], (8, 8, 2), seed=5)
    assert found.untrained == pytest.approx(found.distance, abs=1e-6)
    (other,) = weights.layer_weights(fresh, ["stage_1/conv_1/conv"], (8, 8, 2), seed=6)
    assert other.untrained != found.untrained
