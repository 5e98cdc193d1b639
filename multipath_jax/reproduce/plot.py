"""Error against number of parameters, of the paper and ours (the paper's Fig. 7)."""

import dataclasses
import os
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator
from matplotlib.transforms import Bbox, BboxBase

from multipath_jax.utils import lettering

# The color-blind safe palette of Okabe and Ito, with a marker for each color.
FAMILIES = {
    "single": ("#0072B2", "o", "plain, wide, deep, and ensembles"),
    "adaptive": ("#CC79A7", "D", "other adaptive or multi-path networks"),
    "CP": ("#009E73", "^", "paths with cross-prediction (-CP)"),
    "CC": ("#D55E00", "s", "paths with cross-connections (-CC)"),
}
ADAPTIVE = ("SE", "Cr-Stitch", "NDDR", "CapsNet", "Highway", "Hyper", "BlockDrop", "ConvNet-AIG",
            "SkipNet")  # fmt: skip
TICKS = (0.1, 0.2, 0.3, 0.5, 1, 2, 3, 5, 10, 15)
# Possible positions of a label: offset to the right and up in points, and alignment.
PLACES = [
    (8, 0, "left", "center"), (-8, 0, "right", "center"), (0, 7, "center", "bottom"),
    (0, -7, "center", "top"), (5, 5, "left", "bottom"), (5, -5, "left", "top"),
    (-5, 5, "right", "bottom"), (-5, -5, "right", "top"), (0, 15, "center", "bottom"),
    (0, -15, "center", "top"), (10, 12, "left", "bottom"), (10, -12, "left", "top"),
    (-10, 12, "right", "bottom"), (-10, -12, "right", "top"),
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Point:
    """A network in the figure.

    Attributes:
      params: number of parameters in millions.
      error: error in percent.
      label: name of the network.
      family: a key of `FAMILIES`.
      trials: mean and standard deviation of our trials, of which ``error`` is the best; None for
        the paper's errors.
    """

    params: float
    error: float
    label: str
    family: str
    trials: tuple[float, float] | None = None


def family_of(model: str) -> str:
    """The key of `FAMILIES` for the name of a network."""
    if model.endswith(("-CP", "-CC")):
        return model[-2:]
    return "adaptive" if model.startswith(ADAPTIVE) else "single"


def draw(path: os.PathLike, panels: Mapping[str, Sequence[Point]]) -> None:
    """Draws the panels side by side, in the format given by the suffix of the path."""
    # Without pyplot, so that no display is needed.
    figure = Figure(figsize=(6.2 * len(panels), 6.2), layout="constrained")
    figure.legend(handles=_legend(), loc="outside lower center", ncols=3, frameon=False)
    for axes, (title, points) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        axes.set_title(title, loc="left")
        _scales(axes, points)
        for point in points:
            _point(axes, point)
    figure.draw_without_rendering()  # computes the layout, since labels are placed in pixels
    for axes, points in zip(figure.axes, panels.values(), strict=True):
        _labels(axes, points)
    lettering.save(figure, path, 110)


def _legend() -> list[Line2D]:
    def handle(color, marker, label, **more):
        return Line2D([], [], color=color, marker=marker, label=label, linestyle="none", **more)

    families = [handle(*style) for style in FAMILIES.values()]
    hollow = handle("#555555", "o", "hollow: the paper", markerfacecolor="white")
    ours = "filled: our best trial; bar: mean ± standard deviation"
    return [*families, hollow, handle("#555555", "o", ours)]


def _scales(axes: Axes, points: Sequence[Point]) -> None:
    params = [point.params for point in points]
    errors = [point.error for point in points]
    errors += [sum(point.trials) for point in points if point.trials]
    low, high = min(params) / 1.5, max(params) * 1.9
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.set_ylim(min(errors) * 0.95, max(errors) * 1.04)
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in TICKS if low <= tick <= high]))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(xlabel="parameters (millions)", ylabel="test error (%)")
    axes.grid(color="#EEEEEE", zorder=0)
    axes.spines[["top", "right"]].set_visible(False)


def _point(axes: Axes, point: Point) -> None:
    color, marker, _ = FAMILIES[point.family]
    ours = point.trials is not None
    if ours:
        mean, deviation = point.trials
        bar = {"fmt": "none", "ecolor": color, "capsize": 4, "elinewidth": 1.5}
        axes.errorbar(point.params, mean, deviation, **bar)
    axes.plot(
        point.params,
        point.error,
        marker,
        color=color,
        markersize=6 if ours else 9.5,  # of equal points, ours is inside the ring
        markerfacecolor=color if ours else "none",
        markeredgewidth=1.3,
        zorder=3,
    )


def _labels(axes: Axes, points: Sequence[Point]) -> None:
    """Labels the paper's points, avoiding overlaps."""
    taken = [_around(*axes.transData.transform((point.params, point.error))) for point in points]
    for point in points:
        if point.trials is None:
            taken.append(_label(axes, point, taken))


def _around(x: float, y: float) -> Bbox:
    """The bounding box of a marker in pixels."""
    return Bbox.from_bounds(x - 6, y - 6, 12, 12)


def _label(axes: Axes, point: Point, taken: Sequence[Bbox]) -> Bbox:
    """Draws a label where it overlaps least, and returns its bounding box in pixels."""
    tried = []
    for right, up, horizontal, vertical in PLACES:
        note = axes.annotate(
            point.label,
            (point.params, point.error),
            (right, up),
            textcoords="offset points",
            ha=horizontal,
            va=vertical,
            fontsize=7.5,
            color="#333333",
        )
        box = note.get_window_extent()
        hidden = sum(_overlap(box, other) for other in taken)
        outside = box.width * box.height - _overlap(box, axes.bbox)
        tried.append((hidden + outside, len(tried), note, box))
    _, best, _, box = min(tried, key=lambda one: one[:2])
    for _, number, note, _ in tried:
        if number != best:
            note.remove()
    return box


def _overlap(one: BboxBase, other: BboxBase) -> float:
    """The area of the intersection of two boxes."""
    shared = Bbox.intersection(one, other)
    return shared.width * shared.height if shared else 0.0
