"""The summary, which compares the networks with the numbers in the paper."""

import json

import flax.linen as nn
import pytest
from command_line import refusal

from multipath_jax import create_model, list_models, summary
from multipath_jax.models import family_of, paper
from multipath_jax.models.complexity import complexity
from multipath_jax.utils.tables import aligned


def run(capsys, *argv):
    assert summary.main(argv) == 0
    return capsys.readouterr().out


def test_a_table_shows_its_rows_with_both_counts(capsys, monkeypatch):
    rows = tuple(row for row in paper.rows(2) if row.model in ("BaseCNN-2-CC", "BaseCNN-3"))
    monkeypatch.setattr(paper, "ROWS", rows + paper.rows(4))
    lines = run(capsys, "--table=2").splitlines()
    assert len(lines) == 1 + len(rows)
    row = next(line for line in lines if line.startswith("BaseCNN-2-CC "))
    assert row.split()[:6] == ["BaseCNN-2-CC", "1.11", "1.11", "77.8", "9", "5"]
    assert "7.03 CIFAR-10, 6.53 CIFAR-10, 350 epochs" in row
    assert "three BaseCNNs have 1.65M" in next(x for x in lines if x.startswith("BaseCNN-3 "))


def test_a_name_alone_shows_its_layers_as_called_with_shapes(capsys):
    lines = run(capsys, "BaseCNN-2-CC").splitlines()[3:]
    assert lines[0].strip() == "MultiPath Summary"
    named = {line.split()[0]: line for line in lines if line and line[0] != " "}
    assert "float32[2,1,16,16,32]" in named["router_2"]
    assert "float32[1,8,8,128]" in named["stage_3/conv_2/conv"]  # the shape for one path
    names = list(named)
    order = ["router_1", "stage_1", "router_2", "stage_2", "router_3", "stage_3", "router_4"]
    assert [names.index(name) for name in order] == sorted(names.index(name) for name in order)
    first = lines.index(named["stage_1/conv_1/conv"])
    assert "bias: float32[2,32]" in lines[first]
    assert lines[first + 1].strip() == "kernel: float32[2,3,3,3,32]"
    assert "Total Parameters" in lines[-1]


class Huge(nn.Module):
    """A network whose weights would take 256 GB."""

    @nn.compact
    def __call__(self, images, train=False):
        return nn.Dense(10**9)(images.reshape(len(images), -1))


def test_layers_are_plain_text_of_any_width_and_nothing_is_allocated(monkeypatch):
    """Environment variables for terminals have no effect."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    text = summary.layers(Huge(), (8, 8, 1))
    assert "kernel: float32[64,1000000000]" in text
    assert not {"\x1b", "…", "━", "│"} & {*text}
    assert max(map(len, text.splitlines())) > 80
    assert text.splitlines() == [line.rstrip() for line in text.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("name", list_models())
def test_every_network_has_its_layers(name):
    text = summary.layers(create_model(name), family_of(name).image_shape)
    total = complexity(create_model(name), family_of(name).image_shape).params
    assert f"{total:,} (" in text


def test_json_has_the_figures_as_numbers(capsys):
    (entry,) = json.loads(run(capsys, "BaseCNN-7-CC", "--classes=100", "--json"))
    assert entry["paper_params"] is None
    assert entry["classes"] == 100
    assert entry["routers"] == 5
    assert entry["params"] > 7 * 551_466


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("BaseCNN-2-CB",), "did you mean BaseCNN-2-C"),
        (("--table=5",), "invalid choice"),
        (("--tabel=2",), "unrecognized arguments: --tabel=2"),
        (("BaseCNN", "--classes=0"), "at least 1 path and 1 class"),
        (("BaseCNN", "--size=0"), "--size=0 must be at least 1"),
        (("BaseCNN", "--size=2"), "--size=2 is too small"),
        (("--classes=7",), "--classes needs names of networks"),
        (("--table=4", "--size=64"), "--size needs names of networks"),
        (("BaseCNN", "--table=2"), "--table cannot be combined with names"),
    ],
)
def test_bad_input_is_one_line_and_status_2(capsys, monkeypatch, argv, message):
    assert message in refusal(summary, argv, capsys, monkeypatch)


def test_tables_are_plain_text_whatever_they_hold(monkeypatch):
    """No markup, no colors, nothing truncated; characters of double width count as two columns."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    cells = [
        ["name", "n", "note"],
        ["[red]a[/]", "1.50", ":smile: " + 200 * "x"],
        ["日本", "22.00", ""],
    ]
    assert aligned(cells, left=(0, 2)).splitlines() == [
        "name           n  note",
        "[red]a[/]   1.50  :smile: " + 200 * "x",
        "日本       22.00",
    ]
    assert aligned([["a", "1"]], left=(0,), widths=(4, 3)) == "a       1"
