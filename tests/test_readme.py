"""The README's code runs as it stands."""

import re
from pathlib import Path

import pytest

from multipath_jax import summary
from multipath_jax.reproduce import report
from multipath_jax.reproduce.ledger import Ledger

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.parametrize("code", BLOCKS, ids=range(len(BLOCKS)))
def test_python_block_runs(code):
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["logits"].shape == (8, 10)
    kernel = names["variables"]["params"]["Backbone_0"]["Conv_0"]["kernel"]
    assert kernel.shape == (3, 3, 3, 3, 32)  # one set of parameters for each of three paths


@pytest.mark.slow  # all networks, traced
def test_the_table_of_networks_is_the_summary_s(capsys):
    summary.main([])
    block = re.search(r"<!-- summary.*?```text\n(.*?)```", README.read_text(), re.DOTALL)
    assert block[1] == capsys.readouterr().out


def test_the_errors_are_those_of_the_ledger():
    """By the paper's protocol and by the fast recipe."""
    lines = Ledger(README.parent / "results").lines()
    sections = list(report.SECTION.finditer(README.read_text()))
    assert ["--recipe=fast" in found[1] for found in sections] == [False, True]
    for found in sections:
        assert found[0] == found[1] + report.section(lines, found[1]) + found[2]


def test_there_is_code():
    assert BLOCKS
