"""Imports within the package go in one direction, from the equations to the programs."""

import ast
import itertools
from pathlib import Path

import pytest

import multipath_jax

ROOT = Path(multipath_jax.__file__).parent
# Modules import only those of the groups above; those of one group do not import each other.
ORDER = (
    ("errors", "routing"),
    ("utils", "layers"),
    ("config", "data", "models"),
    ("parallel", "recipes", "weights"),
    ("checkpoints", "evaluation", "metrics_file"),
    ("training",),
    ("curves", "runs"),
    ("card", "gates", "pictures", "pretrained", "to_onnx", "trainer"),
    ("trials",),
    ("reproduce",),
    ("figures",),
    (
        "benchmark",
        "compile_tpu",
        "export",
        "import_weights",
        "main",
        "predict",
        "prepare",
        "summary",
    ),
)


def modules():
    """Yields the paths of all modules, with the name of their top-level module or package."""
    for path in sorted(ROOT.rglob("*.py")):
        name = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if name not in ("__init__", "configs"):
            yield name, path


def imported(path):
    """Yields the top-level names in this package that a file imports, also within functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith("multipath_jax."))


def test_every_module_has_its_place():
    assert {name for name, _ in modules()} == {*itertools.chain(*ORDER)}


@pytest.mark.parametrize("level", range(len(ORDER)))
def test_imports_go_one_way(level):
    below = {*itertools.chain(*ORDER[:level])}
    for name, path in modules():
        if name in ORDER[level]:
            others = {*imported(path)} - below - {name}
            assert not others, f"{path} imports {others}"


def test_the_equations_import_nothing_of_ours():
    assert not {*imported(ROOT / "routing.py")}


def test_training_is_seen_whole():
    assert len([*(ROOT / "training").iterdir()]) - (ROOT / "training/__pycache__").exists() <= 12
