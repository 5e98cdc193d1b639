"""The wheel contains all modules and recipes, and works without the repository."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PARTS = ("multipath_jax", "configs", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder in which only the wheel is installed."""
    folder = tmp_path_factory.mktemp("wheel")
    source, target = folder / "source", folder / "target"
    source.mkdir()
    for name in PARTS:  # a copy, since setuptools leaves files next to the sources
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "wheel", *offline, f"--wheel-dir={folder}", source], check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", *offline, f"--target={target}", wheel], check=True)
    return target


def relative(folder, pattern):
    return {path.relative_to(folder) for path in folder.rglob(pattern)}


@pytest.mark.slow
def test_every_file_travels_and_no_other(installed):
    package = installed / "multipath_jax"
    folders = {path.name for path in installed.glob("*") if "dist-info" not in path.name}
    assert folders == {"multipath_jax", "bin"}
    recipes = {pathlib.Path("configs", path.name) for path in (ROOT / "configs").glob("*.py")}
    assert relative(package, "*.py") == relative(ROOT / "multipath_jax", "*.py") | recipes
    for pattern in ("*.js", "*.css", "*.html"):
        assert relative(package, pattern) == relative(ROOT / "multipath_jax", pattern) != set()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "status", "said"),
    [
        ("--config=cifar:ResNet20-3-CD", 2, "ResNet20-3-CC"),
        ("--config=digitz", 2, "the recipes are digits, "),
        ("--config=configs/digits.py", 2, "--config=digits is the recipe of that name"),
    ],
)
def test_its_recipes_are_found_from_any_folder(installed, tmp_path, config, status, said):
    (tmp_path / "cwd").mkdir()
    flags = [config, "--workdir=run", f"--config.dataset.data_dir={tmp_path / 'tfds'}"]
    changes = ["--config.dataset.name=digits"] if "cifar" in config else []
    done = subprocess.run(
        [sys.executable, "-m", "multipath_jax.main", *flags, *changes],
        cwd=tmp_path / "cwd",
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr.count("\n")) == (status, 1), done.stderr
    assert said in done.stderr


@pytest.mark.slow
def test_its_commands_are_those_of_its_modules(installed):
    done = subprocess.run(
        [installed / "bin" / "multipath-summary", "--tabel=2"],
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "python -m multipath_jax.summary --help" in done.stderr
