"""Tests of Fig. 9: gradient ascent raises scores and is reproducible, and extremes are correct."""

import numpy as np
import pytest
import small_networks

from multipath_jax.figures import maximize
from multipath_jax.figures.selectors import GateIndex
from multipath_jax.gates import observe

GATES = [GateIndex(1, 1, 2), GateIndex(2, 2, 1), GateIndex(2, 1, 1)]
ASCENT = maximize.Ascent(steps=20)


@pytest.fixture(scope="module")
def made():
    return maximize.synthesize(small_networks.network(), GATES, (8, 8, 2), ASCENT)


def test_the_ascent_raises_every_score_above_any_random_image(made):
    found = observe(small_networks.network(), small_networks.images(50))
    assert (made.after > made.before).all()
    for gate, score in zip(GATES, made.after, strict=True):
        scores = found.routers[gate.router - 1].relevance[gate.input - 1, :, gate.output - 1]
        assert score > scores.max()


def test_the_scores_are_those_of_the_images_as_they_are_stored(made):
    found = observe(small_networks.network(), made.images)
    for number, gate in enumerate(GATES):
        relevance = found.routers[gate.router - 1].relevance
        score = relevance[gate.input - 1, number, gate.output - 1]
        assert made.after[number] == pytest.approx(score, rel=1e-4, abs=1e-5)


def test_the_same_seed_makes_the_same_images_and_another_seed_others(made):
    network = small_networks.network()
    again = maximize.synthesize(network, GATES, (8, 8, 2), ASCENT)
    np.testing.assert_array_equal(again.images, made.images)
    other = maximize.synthesize(network, GATES, (8, 8, 2), maximize.Ascent(steps=20, seed=1))
    assert (other.images != made.images).any()


def test_a_penalty_keeps_the_image_near_the_mean_colour(made):
    network = small_networks.network()
    faint = maximize.synthesize(network, GATES, (8, 8, 2), maximize.Ascent(steps=20, penalty=1e6))
    sizes = [np.square(network.prepare(one.images)).mean() for one in (faint, made)]
    assert sizes[0] < sizes[1] / 4


class OfFloats(small_networks.Trained):
    """A network on float pixels; as a run on them, it refuses uint8."""

    def prepare(self, images):
        assert images.dtype == np.float32
        return images


def test_images_of_floats_have_their_type_and_range():
    network = small_networks.network()
    images = (small_networks.images() / 50 - 2).astype(np.float32)
    levels = maximize.levels_of(images)
    assert levels.tolist() == [images.min(), images.max()]
    trained = OfFloats(network.model, network.variables)
    made = maximize.synthesize(trained, GATES, (8, 8, 2), ASCENT, levels)
    assert made.images.dtype == np.float32
    # Within the levels up to rounding.
    assert images.min() - 1e-5 <= made.images.min() < 0 < made.images.max() <= images.max() + 1e-5
    assert (made.after > made.before).all()


def test_extremes_come_in_order():
    highest, lowest = maximize.extremes(np.array([0.3, 0.9, 0.1, 0.5]), 3)
    assert highest.tolist() == [1, 3, 0]
    assert lowest.tolist() == [2, 0, 3]


def test_fewer_images_than_shown_are_all_shown(made):
    found = observe(small_networks.network(), small_networks.images(4))
    maxima = maximize.maxima(found, GATES, made)
    assert [len(one.highest) for one in maxima] == [4, 4, 4]
    gates = found.routers[1].gates
    assert maxima[1].highest[0] == gates[1, :, 0].argmax()
    assert maxima[1].lowest[0] == gates[1, :, 0].argmin()
