"""Tests of the routes of discrete networks: counts, information, the program and the drawing."""

import itertools

import numpy as np
import pytest
import small_networks
from command_line import refusal
from matplotlib.figure import Figure
from test_figures_main import loaded

from multipath_jax.figures import __main__ as figures
from multipath_jax.figures import paths_taken, routes, style
from multipath_jax.gates import Observation, Outline, RouterRecord, observe
from multipath_jax.layers import CrossConnect
from multipath_jax.models.multipath import MultiPath

NAMES = ("ant", "bee", "cat")


def record(chosen):
    m, b, n = chosen.shape
    gates = chosen / np.maximum(chosen.sum(2, keepdims=True), 1)
    strengths = np.ones((m, b)), np.ones((n, b))
    return RouterRecord("router", gates, gates, *strengths, chosen=chosen)


def made_up(first, second):
    """Records of two routers that choose k = 1 of two paths, from the choices for each image."""
    first, second = np.asarray(first), np.asarray(second)
    one = np.eye(2, dtype=bool)[first][None]
    two = np.zeros((2, len(first), 2), bool)
    two[first, np.arange(len(first)), second] = True
    return Observation((record(one), record(two)), np.zeros((len(first), 3)))


def test_routes_are_counted_by_class():
    labels = np.array([0] * 10 + [2] * 10)
    found = paths_taken.paths_taken(
        made_up([0] * 10 + [1] * 10, [0] * 8 + [1] * 2 + [0] * 9 + [1]), labels, NAMES
    )
    assert found.possible == 4
    rows = [(row.name, row.images, row.routes, row.most) for row in found.taken]
    # The routes have 9, 8, 2 and 1 images; 90 % of all images are 18, which needs three routes.
    assert rows == [("all", 20, 4, 3), ("ant", 10, 2, 2), ("cat", 10, 2, 1)]
    whole, first, second = found.information
    np.testing.assert_allclose([whole.bits, first.bits], [1, 1])  # router 1 determines the class
    assert second.bits < 0.05
    assert whole.entropy == 1
    assert 0 <= whole.chance < 0.5
    np.testing.assert_allclose(found.shares, [[1, 0, 0.8, 0.2], [0, 1, 0.9, 0.1]])
    assert "of 4 possible routes" in paths_taken.table(found)


@pytest.mark.parametrize(("k", "n"), [(1, 3), (2, 3), (2, 4), (3, 4)])
def test_possible_routes_are_those_that_choices_can_give(k, n):
    sets = {(frozenset([0]),)}
    for _ in range(2):
        sets = {
            (*route, frozenset(itertools.chain(*choice)))
            for route in sets
            for choice in itertools.product(
                itertools.combinations(range(n), k), repeat=len(route[-1])
            )
        }
    first = np.zeros((1, 1, n), bool)
    first[..., :k] = True
    second = np.zeros((n, 1, n), bool)
    second[:k, :, :k] = True
    found = Observation((record(first), record(second)), np.zeros((1, 3)))
    assert paths_taken.possible(found) == len(sets)


def test_information_is_that_of_the_joint_counts():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 3, 200), rng.integers(0, 2, 200)
    joint = np.array([[np.mean((a == i) & (b == j)) for j in range(2)] for i in range(3)])
    product = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    expected = (joint * np.log2(joint / product)).sum()
    np.testing.assert_allclose(paths_taken.mutual_information(a, b), expected, atol=1e-12)
    np.testing.assert_allclose(paths_taken.mutual_information(a, a), paths_taken.entropy(a))


def test_routes_draw_only_what_is_active():
    observation = made_up([0, 1], [1, 1])
    outline = Outline(("", ""), ((1, 2), (2, 2)), ((), ("stage",), ("dense",)), (), True)
    images = np.zeros((2, 8, 8, 3), np.uint8)
    found = routes.Routes(outline, observation, images, ["a", "b"])
    axes = Figure().subplots()
    routes._Strip(axes, routes._Plan(found), found, 0).draw()
    edges = [line for line in axes.lines if line.get_color() != style.GREY]
    assert len(edges) == 2  # one at each router
    # An input, a gate and an output per router; the stage; the dense layer; the mean of the paths.
    assert len(axes.patches) == 2 * 3 + 2 + 1


@pytest.fixture
def discrete(monkeypatch, tmp_path):
    soft = small_networks.network(channels=1).model
    layers = (x.clone(k=1) if isinstance(x, CrossConnect) else x for x in soft.layers)
    trained = small_networks.initialized(MultiPath(tuple(layers)), 1)
    run = loaded(tmp_path, trained, "Small-2-CC")
    monkeypatch.setattr(figures, "load_run", lambda workdir, checkpoint: run)
    return tmp_path


def test_the_program_draws_a_discrete_network(discrete, capsys, monkeypatch):
    assert figures.main(["--workdir=RUN", "--only=paths,routes,classes"]) == 0
    drawn = sorted(path.name for path in (discrete / "figures").iterdir())
    assert drawn == ["classes.png", "paths.json", "paths.png", "routes.png"]
    assert "mutual information of route and class" in capsys.readouterr().out
    said = refusal(figures, ["--workdir=RUN", "--only=ablation"], capsys, monkeypatch)
    assert "no figure ablation: Small-2-CC is discrete" in said


def test_a_soft_network_has_no_paths_to_count(monkeypatch, tmp_path, capsys):
    run = loaded(tmp_path, small_networks.network(channels=1), "Small-2-CC")
    monkeypatch.setattr(figures, "load_run", lambda workdir, checkpoint: run)
    assert observe(run, small_networks.images(3)[..., :1]).routers[0].chosen is None
    said = refusal(figures, ["--workdir=RUN", "--only=paths"], capsys, monkeypatch)
    assert "no figure paths: Small-2-CC is not discrete" in said
