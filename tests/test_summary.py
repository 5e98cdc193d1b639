"""The summary: our networks beside the paper's figures."""

import json

import pytest
from command_line import refusal

from multipath_jax import summary


def run(capsys, *argv):
    assert summary.main(argv) == 0
    return capsys.readouterr().out


def test_a_table_shows_every_row_with_both_counts(capsys):
    lines = run(capsys, "--table=2").splitlines()
    assert len(lines) == 1 + 20
    row = next(line for line in lines if line.startswith("BaseCNN-2-CC "))
    assert row.split()[:6] == ["BaseCNN-2-CC", "1.11", "1.11", "77.8", "9", "5"]
    assert "7.03 CIFAR-10, 6.53 CIFAR-10, 350 epochs" in row
    assert "three BaseCNNs have 1.65M" in next(x for x in lines if x.startswith("BaseCNN-3 "))


def test_a_name_alone_shows_its_layers_in_order_with_shapes(capsys):
    lines = [line.split() for line in run(capsys, "BaseCNN-2-CC").splitlines()[3:]]
    shapes = {line[0]: line[1] for line in lines}
    assert shapes["router_2"] == "2x1x16x16x32"
    assert shapes["stage_3/conv_2/conv"] == "2x1x8x8x128"
    names = list(shapes)
    order = ["router_1", "stage_1", "router_2", "stage_2", "router_3", "stage_3", "router_4"]
    assert [names.index(name) for name in order] == sorted(names.index(name) for name in order)
    kernel = next(line for line in lines if line[0] == "stage_1/conv_1/conv")
    assert " ".join(kernel[2:]) == "bias 2x32, kernel 2x3x3x3x32"


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
    ],
)
def test_bad_input_is_one_line_and_status_2(capsys, monkeypatch, argv, message):
    assert message in refusal(summary, argv, capsys, monkeypatch)
