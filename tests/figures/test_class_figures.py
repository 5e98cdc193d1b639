"""Tests of gates by class (Fig. 10, the matrix, the clusters) against values from NumPy."""

import os

import numpy as np
import pytest
from matplotlib.text import Text

from multipath_jax.figures import classes, clusters, histograms, style
from multipath_jax.figures.selectors import GateIndex
from multipath_jax.gates import Observation, RouterRecord

LABELS = np.array([0, 0, 2, 2, 2, 0], np.int32)
NAMES = ("ant", "bee", "cat")


def observation(first, second):
    """Records of routers with one and two inputs, and two outputs, from the gates to output 1."""

    def record(name, to_one):  # [m b]
        gates = np.stack([to_one, 1 - to_one], axis=-1)
        ones = np.ones(to_one.shape)
        return RouterRecord(name, gates, gates, ones, np.ones((2, to_one.shape[1])))

    return Observation((record("a", first), record("b", second)), np.zeros((len(LABELS), 3)))


OBSERVATION = observation(
    np.array([[0.02, 0.99, 0.97, 0.51, 1.0, 0.0]]),
    np.array([[0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0.9, 0.9, 0.1, 0.1, 0.1, 0.9]]),
)


def test_a_histogram_counts_the_images_of_its_class():
    gates = [GateIndex(1, 1, 1), GateIndex(2, 2, 2)]
    rows = histograms.histograms(OBSERVATION, LABELS, NAMES, gates, [2, 0, 1])
    assert [[one.class_name for one in row] for row in rows] == [["cat", "ant", "bee"]] * 2
    counts = rows[0][0].counts
    assert counts.sum() == 3
    assert (counts[10], counts[19]) == (1, 2)  # 0.51; 0.97 and 1: the last bin includes 1
    assert rows[0][1].counts.tolist() == [2] + [0] * 18 + [1]
    assert rows[1][0].mean == pytest.approx(0.9)
    assert np.isnan(rows[0][2].mean)  # there are no images of bees
    assert rows[0][2].counts.sum() == 0


def test_class_means_are_those_of_the_images_and_absent_classes_are_left_out():
    found = classes.class_means(OBSERVATION, LABELS, NAMES)
    assert found.class_names == ("ant", "cat")
    assert list(map(str, found.gates)) == ["1:1-1", "1:1-2", "2:1-1", "2:1-2", "2:2-1", "2:2-2"]
    np.testing.assert_allclose(found.means[0], [1.01 / 3, 1.99 / 3, 0.3, 0.7, 0.9, 0.1])
    np.testing.assert_allclose(found.overall[4:], [0.5, 0.5])


def test_clusters_of_a_gate_that_is_the_class_are_the_classes():
    first, second = clusters.clusters(OBSERVATION, LABELS)
    assert second.agreement == pytest.approx(1)
    assert len({(a, b) for a, b in zip(second.assigned, LABELS, strict=True)}) == 2
    assert first.agreement < 0.5
    assert first.explained == pytest.approx(1)  # g and 1 - g lie on one line
    assert np.abs(first.plane[:, 1]).max() < 1e-9


STRANGE = ("_$x$", os.fsdecode(b"caf\xe9"), "猫")
WRITTEN = ("_$x$", r"caf\xe9", "猫")


@pytest.fixture
def drawn(monkeypatch):
    """A list to which all saved figures are added."""
    figures = []
    save = style.save

    def keep(figure, path):
        save(figure, path)
        figures.append(figure)

    monkeypatch.setattr(style, "save", keep)
    return figures


def _texts(figure):
    """The text objects of a figure by their strings."""
    return {text.get_text(): text for text in figure.findobj(Text)}


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_names_of_any_kind_are_drawn_as_they_are(tmp_path, drawn, suffix):
    labels = np.array([0, 1, 2, 2, 1, 0], np.int32)
    gates, path = [GateIndex(1, 1, 1), GateIndex(2, 2, 2)], tmp_path / f"figure.{suffix}"
    rows = histograms.histograms(OBSERVATION, labels, STRANGE, gates, [0, 1, 2])
    histograms.draw(path, rows)
    classes.draw(path, classes.class_means(OBSERVATION, labels, STRANGE))
    found = clusters.clusters(OBSERVATION, labels)
    clusters.draw(path, found, labels, STRANGE, [0, 1, 2])
    for figure in drawn:
        texts = _texts(figure)
        assert set(WRITTEN) <= texts.keys()
        assert not any(texts[name].get_parse_math() for name in WRITTEN)
    assert _texts(drawn[0])["$g_{11}^{1}$\nimages (%)"].get_parse_math()  # our own label
    clusters.draw(path, found, labels, STRANGE, [0])
    (legend,) = drawn[-1].legends
    assert [text.get_text() for text in legend.get_texts()] == ["other classes", "_$x$"]
    assert [handle.get_marker() for handle in legend.legend_handles] == [".", "o"]


def test_gates_that_never_change_have_no_clusters():
    constant = np.full((1, len(LABELS)), 0.5)
    found = clusters.clusters(observation(constant, constant.repeat(2, 0)), LABELS)
    assert [one.agreement for one in found] == [0, 0]
    assert not found[1].plane.any()
