"""Figure of the results: all ratios with quartiles and targets, and the growth with paths."""

import os
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from multipath_jax.benchmark.report import number
from multipath_jax.benchmark.rows import Row
from multipath_jax.utils import lettering

# The color-blind safe palette of Okabe and Ito, with a marker for each color.
STYLES = {
    "met": ("#0072B2", "o", "target met"),
    "open": ("#E69F00", "s", "within noise of the target"),
    "missed": ("#D55E00", "X", "missed"),
    None: ("#555555", "D", "no target"),
}
FAMILIES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"))  # curves of the growth
TICKS = (*(i / 10 for i in range(1, 10)), 1, 1.1, 1.2, 1.3, 1.5, 2, 3, 5, 8, 12, 20, 30, 50, 100)
WIDTH, ROW, PANEL, GROWTH, MARGIN = 10.5, 0.26, 0.62, 2.6, 1.0  # inches


def draw(path: os.PathLike, about: dict[str, Any], rows: Sequence[tuple[str, Row]]) -> None:
    """Draws a panel for each kind of ratio, in the format given by the suffix of the path."""
    panels: dict[tuple[str, str], list[Row]] = {}
    for part, row in rows:
        if row.ratio is not None:
            panels.setdefault((part, row.compared), []).append(row)
    growth = [row for part, row in rows if part == "paths" and row.ratio is not None]
    heights = [len(panel) * ROW + PANEL for panel in panels.values()] + [GROWTH] * bool(growth)
    # Without pyplot, so that no display is needed.
    figure = Figure(figsize=(WIDTH, sum(heights) + MARGIN), layout="constrained")
    figure.suptitle(_title(about), fontsize=11)
    grid = figure.add_gridspec(len(heights) or 1, 2, height_ratios=heights or None)
    for index, ((part, compared), panel) in enumerate(panels.items()):
        axes = figure.add_subplot(grid[index, :])
        axes.set_title(f"{part}: {compared}", fontsize=10, loc="left")
        _ratios(axes, panel)
    if growth:
        _growth(figure, grid, growth)
    figure.legend(handles=_legend(), loc="outside lower center", ncols=5, fontsize=9, frameon=False)
    lettering.save(figure, path, 130)


def _title(about: dict[str, Any]) -> str:
    device = about["device"]
    return (
        f"multipath_jax on {device['kind']} ({device['platform']}), {about['dtype']}, "
        f"jax {about['versions'].get('jax', '?')}, {about['date'][:10]}: "
        "medians and quartiles of ratios"
    )


def _legend() -> list[Line2D]:
    options = {"linestyle": "none", "markersize": 6}
    handles = [
        Line2D([], [], color=color, marker=marker, label=label, **options)
        for color, marker, label in STYLES.values()
    ]
    return [*handles, Line2D([], [], color="black", label="target (line), its side (arrow)")]


def _ratios(axes: Axes, rows: Sequence[Row]) -> None:
    """Draws medians and quartiles, one ratio per row, on a logarithmic scale."""
    for y, row in enumerate(rows):
        color, marker, _ = STYLES[row.verdict]
        axes.plot(row.ratio[1:], [y, y], color=color, linewidth=2.5, solid_capstyle="butt")
        axes.plot(row.ratio.median, y, marker, color=color, markersize=6)
        text, target = f"  {number(row.ratio.median)}", row.target
        if target is not None:
            text += f"  (target {'≤' if target.sense == '<=' else '≥'} {target.bound:g})"
            arrow = "<" if target.sense == "<=" else ">"
            axes.plot([target.bound] * 2, [y - 0.38, y + 0.38], color="black", linewidth=1.2)
            axes.plot(target.bound, y - 0.38, arrow, color="black", markersize=4)
        place = axes.get_yaxis_transform()  # at the right edge, at the height of the row
        axes.text(1.0, y, text, transform=place, va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [row.subject for row in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    bounds = [row.target.bound for row in rows if row.target is not None]
    _scale(axes, [1.0, *bounds, *(value for row in rows for value in row.ratio)])


def _scale(axes: Axes, values: Sequence[float]) -> None:
    # Ratios of time differences can be negative, which a logarithmic scale cannot show.
    low, high = min(value for value in values if value > 0) / 1.1, max(values) * 1.1
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    inside = [tick for tick in TICKS if low <= tick <= high]
    if high / low > 4:  # all ticks would overlap
        inside = [tick for tick in inside if tick in (0.1, 0.2, 0.3, 0.5, 1) or tick >= 2]
    axes.xaxis.set_major_locator(FixedLocator(inside))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(axis="x", labelsize=8)
    axes.tick_params(axis="y", length=0)
    axes.axvline(1, color="#999999", linewidth=1, zorder=0)
    axes.grid(axis="x", color="#EEEEEE", zorder=0)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _growth(figure: Figure, grid: GridSpec, rows: Sequence[Row]) -> None:
    """Draws step time and memory over the number of paths, with proportional growth dotted."""
    families: dict[str, list[Row]] = {}
    for row in rows:
        families.setdefault(row.subject.partition("-")[0], []).append(row)
    for column, name in enumerate(("step ms", "peak MB")):
        axes = figure.add_subplot(grid[-1, column])
        for (family, members), (color, marker) in zip(families.items(), FAMILIES, strict=False):
            points = [(row.figures["paths"], row.figures[name]) for row in members]
            points = [(x, y) for x, y in points if y is not None]
            if not points:
                continue
            axes.plot(*zip(*points, strict=True), color=color, marker=marker, label=family)
            if 2 in (two := dict(points)):
                last = points[-1][0]
                axes.plot([0, last], [0, two[2] / 2 * last], ":", color=color, linewidth=1)
        axes.set_title(f"paths: {name} (dotted: proportional)", fontsize=9, loc="left")
        axes.set_xlabel("paths", fontsize=8)
        axes.set_xticks(sorted({row.figures["paths"] for row in rows}))
        axes.set_ylim(bottom=0)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.lines:
            axes.legend(fontsize=8, frameon=False)
