"""Tests of the flags that select gates, classes, images and layers, and of their errors."""

import pathlib

import numpy as np
import pytest

from multipath_jax.errors import UserError
from multipath_jax.figures import selectors
from multipath_jax.figures.selectors import GateIndex
from multipath_jax.gates import Observation, Outline, RouterRecord

OUTLINE = Outline(("router_1", "router_2"), ((1, 2), (2, 3)), ((), (), ()), ())
NAMES = ("ship", "1", "sea snake")


def test_gates_are_counted_from_one_as_in_the_paper():
    assert selectors.gates("2:2-3, 1:1-2", OUTLINE) == [GateIndex(2, 2, 3), GateIndex(1, 1, 2)]
    assert GateIndex(6, 2, 1).label == "$g_{21}^{6}$"
    assert str(GateIndex(6, 2, 1)) == "6:2-1"


def test_classes_are_names_first_and_numbers_else():
    assert selectors.classes("sea snake,0,1", NAMES) == [2, 0, 1]
    assert selectors.classes("2", NAMES) == [2]


def test_images_are_numbers_ranges_and_files():
    assert selectors.images("0,7,20-22,a/7.png", 23) == [0, 7, 20, 21, 22, pathlib.Path("a/7.png")]
    assert selectors.needs_test_split("x.png,3")
    assert not selectors.needs_test_split("x.png")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: selectors.gates("2:1", OUTLINE), "'2:1' is not a gate; write 2:1-2"),
        (
            lambda: selectors.gates("3:1-1", OUTLINE),
            "does not exist; the network has the routers 1 to 2",
        ),
        (
            lambda: selectors.gates("0:1-1", OUTLINE),
            "does not exist; the network has the routers 1 to 2",
        ),
        (lambda: selectors.gates("1:2-1", OUTLINE), "router 1 has the inputs 1 to 1"),
        (lambda: selectors.gates("2:1-4", OUTLINE), "the outputs 1 to 3"),
        (lambda: selectors.gates("2:0-1", OUTLINE), "does not exist"),
        (lambda: selectors.gates("1:1-1,,", OUTLINE), "has an empty item"),
        (lambda: selectors.classes("shp", NAMES), "no class 'shp'; the nearest are ship"),
        (lambda: selectors.classes("3", NAMES), "numbers are 0 to 2"),
        (lambda: selectors.classes("", NAMES), "has an empty item"),
        (lambda: selectors.images("5", 5), "5 is not in the test images 0 to 4"),
        (lambda: selectors.images("3-2", 5), "3-2 is not in the test images"),
        (
            lambda: selectors.layers("stage_3", ["stage_1/conv", "dense"]),
            "nearest are stage_1/conv",
        ),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_the_most_variable_gates_are_one_of_each_vector_and_in_order():
    rng = np.random.default_rng(0)

    def router(name, scales):  # [m n], standard deviations
        scales = np.array(scales)
        gates = np.moveaxis(0.5 + scales * rng.standard_normal((50, *scales.shape)), 1, 0)
        m, b, n = gates.shape
        return RouterRecord(name, gates, gates, np.ones((m, b)), np.ones((n, b)))

    routers = router("a", [[0.1, 0.3]]), router("b", [[0.9, 0.8], [0.2, 0.5]])
    found = Observation(routers, np.zeros((50, 3)))
    assert selectors.most_variable_gates(found, 2) == [GateIndex(2, 1, 1), GateIndex(2, 2, 2)]
    assert selectors.most_variable_gates(found)[0] == GateIndex(1, 1, 2)
    assert len(selectors.most_variable_gates(found)) == 3


@pytest.mark.parametrize("count", [1, 3, 4, 5, 20])
def test_evenly_spaced_keeps_both_ends(count):
    found = selectors.evenly_spaced(range(count), 4)
    assert found == sorted(set(found))
    assert (found[0], found[-1]) == (0, count - 1)
    assert len(found) == min(4, count)
