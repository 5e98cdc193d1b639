"""The pages of this repository, and the Python in them."""

import re
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
OUTSIDE = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]  # pages that are not in docs/
PAGES = [*OUTSIDE, *sorted((ROOT / "docs").glob("*.md"))]


def python(page: Path) -> str:
    """All blocks of Python of a page, one after another."""
    return "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))


def run(page: Path) -> dict:
    """The names that the Python of a page leaves; it is given images and classes to train on."""
    images = np.random.default_rng(0).integers(0, 256, (128, 32, 32, 3), dtype=np.uint8)
    classes = np.arange(128) % 10
    names = {"x": images, "y": classes, "x_test": images[:20], "y_test": classes[:20]}
    exec(compile(python(page), page.name, "exec"), names)
    return names


def train_shortly(monkeypatch, fits: int = 0) -> None:
    """Lets ``Trainer.fit`` stop after one step more with every call, and after so many do nothing.

    It ends with a checkpoint and an evaluation, as it does wherever it is told to stop.
    """
    from multipath_jax.trainer import Trainer

    fit, steps = Trainer.fit, iter(range(1, fits + 1))

    def shortly(self, workdir, until=None):
        step = next(steps, None)
        return None if step is None else fit(self, workdir, until=f"{step} steps")

    monkeypatch.setattr(Trainer, "fit", shortly)
