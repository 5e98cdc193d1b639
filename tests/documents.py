"""The Markdown pages of this repository, and the Python code in them."""

import re
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
OUTSIDE = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]  # pages that are not in docs/
PAGES = [*OUTSIDE, *sorted((ROOT / "docs").glob("*.md"))]


def python(page: Path) -> str:
    """The concatenated Python code blocks of a page."""
    return "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))


def run(page: Path) -> dict:
    """Runs the Python code of a page, given training data; returns its global variables."""
    images = np.random.default_rng(0).integers(0, 256, (128, 32, 32, 3), dtype=np.uint8)
    classes = np.arange(128) % 10
    names = {"x": images, "y": classes, "x_test": images[:20], "y_test": classes[:20]}
    exec(compile(python(page), page.name, "exec"), names)
    return names


def train_shortly(monkeypatch, fits: int = 0) -> None:
    """Patches ``Trainer.fit``: the nth call trains until step n; calls after ``fits`` do nothing.

    Training ends with a checkpoint and an evaluation, as always with ``until``.
    """
    from multipath_jax.trainer import Trainer

    fit, steps = Trainer.fit, iter(range(1, fits + 1))

    def shortly(self, workdir, until=None):
        step = next(steps, None)
        return None if step is None else fit(self, workdir, until=f"{step} steps")

    monkeypatch.setattr(Trainer, "fit", shortly)
