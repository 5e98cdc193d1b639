"""Tests of Fig. 8: strengths, against values by hand, and drawings of any number of paths."""

import os

import numpy as np
import pytest
import small_networks
from matplotlib.figure import Figure
from PIL import Image

from multipath_jax.figures import routes, style
from multipath_jax.gates import Observation, Outline, RouterRecord


def test_strength_is_the_share_of_the_routers_parallel_tensors():
    strength = np.array([[1.0, 0.0, -1.0], [3.0, 0.0, 1.0]])  # two tensors, three images
    expected = [[0.25, 0.5, 0.5], [0.75, 0.5, 0.5]]
    np.testing.assert_array_equal(routes.relative_strength(strength), expected)


def made_up(inputs, outputs, stacks, count):
    """Routes with random images and records for any network, without computing the network."""
    rng = np.random.default_rng(0)

    def router(m, n):
        gates = rng.dirichlet(np.ones(n), (m, count))
        return RouterRecord("", gates, gates, rng.random((m, count)), rng.random((n, count)))

    shapes = tuple(zip(inputs, outputs, strict=True))
    routers = tuple(router(*shape) for shape in shapes)
    outline = Outline(("",) * len(shapes), shapes, stacks, ())
    images = rng.integers(0, 256, (count, 8, 8, 3), np.uint8)
    observation = Observation(routers, rng.random((count, 10)))
    return routes.Routes(outline, observation, images, ["a picture"] * count)


@pytest.mark.parametrize(
    "found",
    [
        made_up((1, 2), (2, 2), ((), ("stage_1",), ("dense_1", "dense_2")), 3),
        made_up((1,), (3,), (("stem",), ()), 1),
        made_up((1, 8, 8), (8, 8, 8), (("stem",), (), ("a_name_too_long_for_its_box",), ()), 1),
        made_up((1, *[2] * 9), (2,) * 10, (("stem",), *[("stack",)] * 10), 1),
        made_up((1, 1), (3, 2), ((), ("merged",), ()), 1),
    ],
)
def test_routes_of_any_network_fit_the_width_of_a_page(tmp_path, found):
    routes.draw(tmp_path / "routes.png", found)
    with Image.open(tmp_path / "routes.png") as picture:
        assert 700 <= picture.width <= 1600


def test_captions_say_what_the_network_takes_the_image_for():
    trained, images = small_networks.network(channels=1), small_networks.images(3)[..., :1]
    found = routes.trace(trained, images, ["a", "b", "c"], small_networks.CLASSES)
    best = found.observation.logits.argmax(axis=1)
    for name, number, caption in zip("abc", best, found.captions, strict=True):
        assert caption.startswith(f"{name}; predicted {small_networks.CLASSES[number]} (")


def test_captions_of_any_kind_are_drawn_as_they_are(tmp_path):
    trained, images = small_networks.network(channels=1), small_networks.images(1)[..., :1]
    name = os.fsdecode(b"$a$ caf\xe9 \xe7\x8c\xab.png")
    found = routes.trace(trained, images, [name], ("$x$", "_", "猫"))
    assert found.captions[0].startswith(r"$a$ caf\xe9 猫.png; predicted ")
    routes.draw(tmp_path / "routes.png", found)
    axes = Figure().subplots()
    routes._Strip(axes, routes._Plan(found), found, 0).draw()
    (caption,) = (text for text in axes.texts if text.get_text() == found.captions[0])
    assert not caption.get_parse_math()


def test_every_gate_is_an_edge_as_thick_as_it_is_open():
    found = made_up((1, 3), (3, 3), ((), ("stage",), ("dense",)), 2)
    axes = Figure().subplots()
    routes._Strip(axes, routes._Plan(found), found, 1).draw()
    thick = sorted(line.get_linewidth() for line in axes.lines if line.get_color() != style.GREY)
    gates = np.concatenate([router.vectors[1] for router in found.observation.routers])
    np.testing.assert_allclose(thick, np.sort(0.4 + 4 * gates), rtol=1e-6)
