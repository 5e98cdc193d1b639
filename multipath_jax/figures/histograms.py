"""Histograms of chosen gates within chosen classes (Section 7.3, Fig. 10)."""

import dataclasses
import os
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int
from matplotlib.figure import Figure

from multipath_jax.figures import style
from multipath_jax.figures.selectors import GateIndex
from multipath_jax.gates import Observation
from multipath_jax.utils import lettering
from multipath_jax.utils.names import printable

BINS = np.linspace(0, 1, 21)


@dataclasses.dataclass(frozen=True)
class Histogram:
    """The histogram of one gate over the images of one class.

    Attributes:
      gate: the gate.
      class_name: name of the class.
      counts: number of images in each bin; ``BINS`` are the edges.
      mean: mean gate; NaN if the class has no images.
    """

    gate: GateIndex
    class_name: str
    counts: Int[np.ndarray, " bins"]
    mean: float


def histograms(
    observation: Observation,
    labels: Int[np.ndarray, " b"],
    class_names: Sequence[str],
    gates: Sequence[GateIndex],
    classes: Sequence[int],
) -> list[list[Histogram]]:
    """Computes the histograms: one row per gate, with one histogram per class.

    Args:
      observation: the records for b images.
      labels: their labels, ``[b]``.
      class_names: names in the order of the labels.
      gates: the gates.
      classes: labels of the classes.
    """

    def one(gate: GateIndex, number: int) -> Histogram:
        values = gate.values(observation)[labels == number]
        counts, _ = np.histogram(values, BINS)
        mean = float(values.mean()) if len(values) else float("nan")
        return Histogram(gate, class_names[number], counts, mean)

    return [[one(gate, number) for number in classes] for gate in gates]


def draw(path: str | os.PathLike, rows: Sequence[Sequence[Histogram]]) -> None:
    """Draws a grid of histograms, with a row per gate and a column per class, in percent.

    Args:
      path: file to write.
      rows: the result of `histograms`.
    """
    columns = len(rows[0])
    size = (min(style.WIDTH, 0.9 + 2.4 * columns), 0.5 + 1.5 * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(rows), columns, squeeze=False, sharex=True, sharey="row")
    for row, line in zip(rows, panels, strict=True):
        for found, axes in zip(row, line, strict=True):
            _panel(axes, found)
        line[0].set_ylabel(f"{row[0].gate.label}\nimages (%)", fontsize=9)
    for axes, found in zip(panels[0], rows[0], strict=True):
        name = printable(found.class_name)
        axes.set_title(name, fontsize=10, **lettering.as_written(name))
    figure.supxlabel("gate activation", fontsize=9)
    style.save(figure, path)


def _panel(axes, found: Histogram) -> None:
    total = found.counts.sum()
    share = 100 * found.counts / max(total, 1)
    axes.stairs(share, BINS, fill=True, color=style.COLORS[0], alpha=0.75)
    if total:
        axes.axvline(found.mean, color=style.COLORS[1], lw=1.3, ls="--")
    words = f"mean {found.mean:.2f}" if total else "no images"
    side = {"x": 0.97, "ha": "right"} if not found.mean > 0.5 else {"x": 0.03, "ha": "left"}
    axes.text(y=0.93, s=words, va="top", fontsize=8, transform=axes.transAxes, **side)
    axes.set_xlim(0, 1)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
