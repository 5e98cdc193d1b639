"""Tests of the page and of the curves of errors, with made-up lines."""

import re
from pathlib import Path

import numpy as np
import pytest
from made_up import line

from multipath_jax import recipes
from multipath_jax.models import paper
from multipath_jax.reproduce import curves, pages
from multipath_jax.reproduce.ledger import Ledger

ROOT = Path(__file__).parents[2]


def with_errors(model, seed, errors, epochs=None, **more):
    """A trial evaluated at these epochs; None: an early line of the ledger, without epochs."""
    entry = line(model, "cifar10", seed, errors[-1], **more) | {"errors": errors}
    return entry if epochs is None else entry | {"error_epochs": epochs}


BASE = with_errors("BaseCNN", 0, [30.0, 12.0, 9.0], [50.0, 100.0, 200.0])
OTHER = with_errors("BaseCNN", 1, [32.0, 11.0], [50.0, 200.0])
FAST = [
    with_errors("BaseCNN-2-CC", seed, [20.0, error], [5.0, 10.0], recipe="fast")
    for seed, error in enumerate((7.0, 8.0))
]


def short(model="WideCNN", **more):
    entry = line(model, "cifar10", 0, 18.0, epochs=5.0, **more)
    return entry | {"errors": [40.0, 30.0, 25.0, 20.0, 18.0]}


def test_errors_have_their_epochs():
    assert curves.by_epoch(BASE) == ([50.0, 100.0, 200.0], [30.0, 12.0, 9.0])
    earlier = curves.by_epoch(short())  # the epochs follow from the number of errors
    assert earlier == ([1.0, 2.0, 3.0, 4.0, 5.0], [40.0, 30.0, 25.0, 20.0, 18.0])
    bare = line("BaseCNN", "cifar10", 0, 9.0)
    assert curves.by_epoch(bare) == ([200.0], [9.0])


def test_a_mean_is_of_the_epochs_that_all_trials_have():
    curve = curves.Curve("BaseCNN", False, 9.26, [curves.by_epoch(one) for one in (BASE, OTHER)])
    epochs, errors = curve.mean
    np.testing.assert_array_equal(epochs, [50.0, 200.0])
    np.testing.assert_array_equal(errors, [31.0, 10.0])


def test_every_recipe_has_a_panel_of_its_own():
    panels = pages.error_curves([BASE, *FAST, OTHER, short()])
    assert list(panels) == ["CIFAR-10, protocol, 200 epochs", "CIFAR-10, fast recipe, 10 epochs"]
    (base,), (routed,) = panels.values()
    assert (base.network, base.routed, base.paper) == ("BaseCNN", False, 9.26)
    assert (routed.network, routed.routed, routed.paper) == ("BaseCNN-2-CC", True, 7.03)
    assert (len(base.trials), len(routed.trials)) == (2, 2)


def test_shortened_trials_are_drawn_until_there_is_a_whole_one():
    altered = short(changes={"batch_size": "64"})
    once = line("BaseCNN", "cifar10", 0, 40.0, epochs=1.0) | {"errors": [40.0]}
    imagenet = line("ResNet18", "imagenet", 0, 30.0) | {"errors": [40.0, 30.0]}
    panels = pages.error_curves([short(), altered, once, imagenet])
    ((title, (curve,)),) = panels.items()
    assert title == "CIFAR-10, protocol shortened to 5 epochs"
    assert curve.paper is None  # the paper's error is after 200 epochs
    assert len(curve.trials) == 1
    assert pages.error_curves([altered, once, imagenet]) == {}


@pytest.mark.parametrize("heights", [[0.1, 0.5, 0.9], [0.5, 0.5, 0.5], [0.1, 0.12, 0.14, 0.9]])
def test_names_are_moved_apart_no_further_than_it_takes(heights):
    moved = curves.apart(heights, 0.1)
    assert np.diff(moved).min() > 0.1 - 1e-9
    assert np.mean(moved[:3]) == pytest.approx(np.mean(heights[:3]))
    if heights[0] == 0.1 and len(heights) == 3:
        assert moved == pytest.approx(heights)


def test_the_page_has_both_recipes_beside_the_paper(tmp_path, monkeypatch):
    monkeypatch.setattr(pages.plot, "draw", lambda *_: None)  # drawing takes seconds
    page = tmp_path / "docs" / "results.md"
    page.parent.mkdir()
    written = pages.write([BASE, OTHER, *FAST], tmp_path / "results", page)
    assert [path.name for path in written] == ["tradeoff.png", "errors.png", "results.md"]
    assert written[1].read_bytes().startswith(b"\x89PNG")
    text = page.read_text()
    assert "](../results/errors.png)" in text
    assert "Errors measured, of 26: 1 with the protocol, 1 with the fast recipe." in text
    assert "Errors measured, of 34: 0 with the protocol.\n" in text.partition("## Table 4")[2]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line[:1] == "|"]
    (base,) = [cells for cells in rows if cells[:2] == ["BaseCNN", "CIFAR-10"]]
    assert base[2:7] == ["9.26", "9.00", "10.00 ± 1.41", "2", "1:30, a device, float32"]
    (routed,) = [cells for cells in rows if cells[:2] == ["BaseCNN-2-CC", "CIFAR-10"]]
    assert [cell.strip() for cell in routed[3:]] == [
        *[""] * 4, "7.00", "7.50 ± 0.71", "2", "1:30, a device, float32",
    ]  # fmt: skip
    assert len(rows) == 3 * 2 + sum(len(row.errors) for row in paper.ROWS)


def test_a_page_without_trials_has_no_picture_of_errors(tmp_path, monkeypatch):
    monkeypatch.setattr(pages.plot, "draw", lambda *_: None)
    page = tmp_path / "results.md"
    pages.write([], tmp_path / "results", page)
    assert "errors.png" not in page.read_text()
    assert "Shortened" not in page.read_text().partition("## Table 2")[2]


def test_trials_that_do_not_count_stand_apart_by_recipe():
    page = pages.page([BASE, short(), short(recipe="fast")], {})
    tables, protocols, fasts = page.split("## Shortened or altered trials, ")
    assert "9.00" in tables
    assert "WideCNN | CIFAR-10 | 8.96 |  |" in tables
    for section, name, whole in (
        (protocols, "protocol", 200),
        (fasts, "fast recipe", recipes.FAST_EPOCHS),
    ):
        assert section.startswith(f"{name}\n\n```text\n")
        assert f"5 of {whole} epochs" in section
        assert "BaseCNN " not in section


def test_networks_that_are_not_in_the_paper_have_a_table_of_their_own():
    unrouted = line("BaseCNN-2", "cifar10", 0, 8.25, recipe="fast")
    page = pages.page([BASE, unrouted, short("BaseCNN-4")], {})
    tables, _, rest = page.partition("## Networks that are not in the paper\n")
    assert "BaseCNN-2 |" not in tables
    added, _, others = rest.partition("## Shortened")
    assert re.search(r"BaseCNN-2 \| CIFAR-10 \|  \| +\|.*\| 8.25 \| 8.25 \| 1 \|", added)
    assert re.search(r"BaseCNN-4 +CIFAR-10 +5 of 200 epochs", others)
    (curve,) = pages.error_curves([unrouted | {"errors": [9.0, 8.25]}]).popitem()[1]
    assert (curve.network, curve.routed, curve.paper) == ("BaseCNN-2", False, None)


def test_the_page_is_that_of_the_ledger():
    """docs/results.md is what ``--report`` writes for the ledger of this repository."""
    lines = Ledger(ROOT / "results").lines()
    pictures = {name: f"../results/{name}" for name in (pages.ERRORS, pages.TRADEOFF)}
    assert (ROOT / "docs/results.md").read_text() == pages.page(lines, pictures)
