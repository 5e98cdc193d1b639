"""Tests of the report's figures against values computed by hand."""

import re

import pytest
from made_up import line

from multipath_jax.models import paper
from multipath_jax.reproduce import pages, report
from multipath_jax.reproduce.plot import FAMILIES, family_of

BASE = paper.rows(model="BaseCNN")[0]
ROUTED = paper.rows(model="BaseCNN-2-CC")[0]
THREE = [
    line("BaseCNN", "cifar10", seed, error, best=error - 0.125)
    for seed, error in enumerate((9.5, 9.0, 9.25))
]
FALSE = line("BaseCNN", "cifar10", 5, 1.0, epochs=20.0)


def cells(lines, row, start):
    """The cells of the report's line with the given start, split at two or more spaces."""
    (found,) = [text for text in report.text(lines, [row]).splitlines() if text.startswith(start)]
    return re.split(r"\s{2,}", found)


def test_best_mean_and_deviation():
    found = report.figures(THREE, BASE, "cifar10")
    assert found.best == 9.0
    assert found.mean == 9.25
    assert found.deviation == pytest.approx(0.25)  # sqrt((0.25^2 + 0 + 0.25^2) / 2)
    assert found.lowest == 8.875
    assert cells(THREE, BASE, "BaseCNN") == [
        "BaseCNN", "CIFAR-10", "9.26", "9.00", "9.25", "0.25", "8.88", "3",
        "1.23", "0.55", "38.9", "2:00", "a device, float32",
    ]  # fmt: skip


def test_one_trial_has_no_deviation():
    assert report.figures(THREE[:1], BASE, "cifar10").deviation is None
    assert cells(THREE[:1], BASE, "BaseCNN")[3:7] == ["9.50", "9.50", "9.38", "1"]


def test_rows_without_a_run_are_open():
    assert cells(THREE, ROUTED, "BaseCNN-2-CC  CIFAR-10  ") == [
        "BaseCNN-2-CC", "CIFAR-10", "7.03", "open", "1.11",
    ]  # fmt: skip
    for table, errors in ((2, 26), (3, 34), (4, 34)):
        rows = paper.rows(table)
        assert len(re.findall(r"  open  ", report.text([], rows))) == errors


@pytest.mark.parametrize(
    "lying",
    [
        FALSE,
        line("BaseCNN", "cifar10", 5, 1.0, changes={"batch_size": "64"}),
        line("BaseCNN", "cifar10", 5, 1.0, epochs=20.0, changes={"batch_size": "64"}),
        line("BaseCNN", "cifar10", 5, 1.0) | {"train_for": "3 steps"},
        # A key that the config no longer has.
        line("BaseCNN", "cifar10", 5, 1.0) | {"changed": {"optimizer.gone": 3}},
    ],
)
def test_shortened_and_altered_trials_never_count(lying):
    assert report.figures([lying], BASE, "cifar10") is None
    assert report.figures([*THREE, lying], BASE, "cifar10").best == 9.0
    counted, rest = report.text([*THREE, lying], [BASE]).split("NOT the protocol's figures")
    assert "1.00" not in counted
    assert "1.00" in rest
    assert report.points([*THREE, lying]) == report.points(THREE)


def test_how_a_trial_was_shortened_or_altered_is_said():
    altered = line("BaseCNN", "cifar10", 5, 2.0, changes={"batch_size": "64"}, epochs=10.0)
    rest = report.text([FALSE, altered], [BASE]).split("NOT the protocol's figures")[1]
    assert re.search(r"BaseCNN +CIFAR-10 +20 of 200 epochs +1.00 ", rest)
    assert re.search(r"BaseCNN +CIFAR-10 +10 of 200 epochs, batch_size=64 +2.00 ", rest)


FAST = [
    line("BaseCNN", "cifar10", seed, error, recipe="fast") | {"flip_error": error - 0.5}
    for seed, error in enumerate((8.5, 9.5))
]


def test_networks_that_are_not_in_the_paper_are_listed_where_they_were_trained():
    unrouted = paper.unprinted("BaseCNN-2")
    found = report.text([line("BaseCNN-2", "cifar10", 0, 8.25)], [BASE, unrouted])
    (row,) = [text for text in found.splitlines() if text[:10] == "BaseCNN-2 "]
    assert re.split(r"\s{2,}", row)[:4] == ["BaseCNN-2", "CIFAR-10", "8.25", "8.25"]


def test_recipes_are_not_mixed():
    """Neither in the tables nor in the figure."""
    lines = [*THREE, *FAST]
    assert report.figures(lines, BASE, "cifar10").errors == [9.5, 9.0, 9.25]
    assert report.figures(lines, BASE, "cifar10", "fast").errors == [8.5, 9.5]
    assert report.text(lines, [BASE]) == report.text(THREE, [BASE])
    assert report.points(lines) == report.points(THREE)


def test_our_recipes_table_has_the_errors_with_mirror_images_apart():
    (found,) = [
        text for text in report.text(FAST, [BASE], "fast").splitlines() if text[:7] == "BaseCNN"
    ]
    assert re.split(r"\s{2,}", found) == [
        "BaseCNN", "CIFAR-10", "9.26", "8.50", "9.00", "0.71", "8.50", "2", "8.50",
        "1.23", "0.55", "38.9", "1:30", "a device, float32",
    ]  # fmt: skip
    short = line("BaseCNN", "cifar10", 5, 1.0, recipe="fast", epochs=3.0)
    rest = report.text([short], [BASE], "fast").split("NOT the fast recipe's figures")[1]
    assert re.search(r"BaseCNN +CIFAR-10 +3 of 10 epochs +1.00 ", rest)
    routed = report.text([], [ROUTED], "fast")
    assert "350 epochs  " not in routed
    assert routed.count("open") == 2  # in the legend and in the row


def test_types_of_computation_are_not_mixed():
    half = [line("BaseCNN", "cifar10", seed, 8.0, dtype="bfloat16") for seed in (0, 1)]
    assert report.figures([*THREE, *half], BASE, "cifar10").errors == [9.5, 9.0, 9.25]
    # As many of each type: the type with the latest trial counts.
    later = [one | {"date": "2026-02-01"} for one in half]
    assert report.figures([*THREE[:2], *later], BASE, "cifar10").errors == [8.0, 8.0]
    assert report.figures([*later, *THREE[:2]], BASE, "cifar10").errors == [8.0, 8.0]


def test_columns_are_not_mixed():
    lines = [line("BaseCNN-2-CC", "cifar10_350", 0, 6.0), line("BaseCNN-2-CC", "cifar10", 0, 7.0)]
    assert report.figures(lines, ROUTED, "cifar10").errors == [7.0]
    assert report.figures(lines, ROUTED, "cifar10_350").errors == [6.0]


def test_a_run_of_table_4_fills_its_four_columns():
    row = paper.rows(model="ResNet18-2-CC")[0]
    measured = {
        "top1": [30.0, 27.5, 28.0],
        "top5": [9.0, 8.5, 8.75],
        "top1_10crop": [25.5],
        "top5_10crop": [7.5],
    }
    run = line("ResNet18-2-CC", "imagenet", 0, 28.0, best=27.5) | {"by_column": measured}
    found = [report.figures([run], row, column) for column in row.errors]
    assert [figures.best for figures in found] == [28.0, 8.75, 25.5, 7.5]
    assert [figures.lowest for figures in found] == [27.5, 8.5, 25.5, 7.5]
    assert cells([run], row, "ResNet18-2-CC  10-crop top-5")[:6] == [
        "ResNet18-2-CC", "10-crop top-5", "7.34", "7.50", "7.50", "7.50",
    ]  # fmt: skip
    assert "open" not in report.text([run], [row]).split("\n\n")[1]


def test_a_column_that_a_run_did_not_measure_is_open():
    row = paper.rows(model="ResNet18-2-CC")[0]
    measured = {"top1": [30.0], "top5": [9.0], "top1_10crop": [], "top5_10crop": []}
    run = line("ResNet18-2-CC", "imagenet", 0, 30.0) | {"by_column": measured}
    found = [report.figures([run], row, column) for column in row.errors]
    assert [figures and figures.best for figures in found] == [30.0, 9.0, None, None]
    short = line("ResNet18-2-CC", "imagenet", 0, 30.0, epochs=12.0) | {"by_column": measured}
    rest = report.text([short], [row]).split("NOT the protocol's figures")[1]
    assert rest.count("12 of 120 epochs") == 2
    assert report.figures([short], row, "top1") is None


def test_files(tmp_path):
    page = tmp_path / "docs" / "results.md"
    written = pages.write(THREE, tmp_path / "results", page)
    assert written == [tmp_path / "results" / "tradeoff.png"]
    assert written[0].read_bytes().startswith(b"\x89PNG")
    assert not page.parent.exists()


def test_the_picture_has_the_papers_points_and_ours():
    panels = report.points(THREE)
    assert list(panels) == [
        "Table 2: CIFAR-10",
        "Table 3: CIFAR-10",
        "Table 3: CIFAR-100",
    ]
    assert [len(panel) for panel in panels.values()] == [21, 19, 15]
    (ours,) = [point for point in panels["Table 2: CIFAR-10"] if point.trials]
    assert (ours.label, ours.params, ours.error) == ("BaseCNN", 1.234567, 9.0)
    assert ours.trials == (9.25, pytest.approx(0.25))
    looks = [style[:2] for style in FAMILIES.values()]
    assert all(len(set(column)) == len(FAMILIES) for column in zip(*looks, strict=True))


@pytest.mark.parametrize(
    ("model", "family"),
    [
        ("BaseCNN-3", "single"),
        ("BaseCNN-3-CP", "CP"),
        ("ResNet32-4-CC", "CC"),
        ("SEResNet110", "adaptive"),
        ("WRN-40-2", "single"),
        ("HyperWRN40-2", "adaptive"),
    ],
)
def test_families(model, family):
    assert family_of(model) == family
