"""A user's files next to the code do not affect the commands of the Makefile."""

import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
# Breaks commands that import or check this file.
HARMFUL = "import os,sys\nraise RuntimeError('imported what is not of the project')\n"
FOLDERS = (".", "data", "data/tests", "models", "notebooks", "runs", "tqdm")
FILES = ("conftest.py", "notebook.ipynb", "queue.py", "test_mine.py", "tqdm.py", "__init__.py")
OURS = {
    "configs/digits.py": "def get_config():\n    return None\n",
    "docs/hooks.py": "import runs\n\nprint(runs)\n",
    "examples/own.py": "import runs\nimport tqdm\n\nprint(runs, tqdm)\n",
    "multipath_jax/__init__.py": "",
    "tests/runs.py": "import queue\n\nQueue = queue.Queue\n",
    "tests/test_it.py": "import pytest\nimport runs\nimport tqdm\n\n\n"
    "def test_it():\n    assert pytest.fail\n    assert runs.Queue\n    assert tqdm.tqdm\n",
}


@pytest.fixture
def folder(tmp_path):
    """The project, with small files in its folders, and a user's harmful files next to them."""
    for name in ("Makefile", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    for name, text in OURS.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    for parent in FOLDERS:
        (tmp_path / parent).mkdir(exist_ok=True)
        for name in FILES:
            if parent != "." or name not in ("conftest.py", "__init__.py"):  # pytest imports these
                (tmp_path / parent / name).write_text(HARMFUL)
    (tmp_path / "tests" / "notebook.ipynb").write_text(HARMFUL)
    (tmp_path / "data" / "pyproject.toml").write_text("[tool.ruff]\nline-length = 20\n")
    return tmp_path


def make(folder, target):
    """Runs a target in the virtual environment of these tests."""
    ready = f"{sys.prefix}/.ready"
    command = ["make", "-o", ready, f"VENV={sys.prefix}", target]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_lint_and_tests(folder):
    done = make(folder, "test")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 files already formatted" in done.stdout
    assert "\n1 passed" in done.stdout


def test_train(folder):
    """Runs up to the check of the workdir, which is a file here."""
    (folder / "runs" / "digits").write_text("")
    done = make(folder, "train")
    assert done.returncode != 0
    assert "runs/digits is not a folder" in done.stderr, done.stderr
    assert "not of the project" not in done.stderr
