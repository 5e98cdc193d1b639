"""Figure of the test error by epoch of networks with and without routing, from the ledger."""

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from multipath_jax.reproduce.ledger import Line
from multipath_jax.utils import lettering

ROUTED, UNROUTED = ("#D55E00", "-"), ("#0072B2", "--")  # Okabe and Ito's vermilion and blue
MARKERS = "osD^vP*X<>phd"  # for the networks of one kind
TICKS = (2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 20, 25, 30, 40, 50, 60, 80)
PAPERS = 4  # matplotlib's CARETLEFT
APART = 0.05  # smallest distance between two labels, as a fraction of a panel's height


@dataclasses.dataclass(frozen=True)
class Curve:
    """The trials of one network by one recipe.

    Attributes:
      network: name of the network as printed.
      routed: whether its routing depends on the image.
      paper: the paper's error in percent; None if it is not comparable.
      trials: for each trial, the epochs of its evaluations and the errors in percent.
    """

    network: str
    routed: bool
    paper: float | None
    trials: Sequence[tuple[Sequence[float], Sequence[float]]]

    @property
    def mean(self) -> tuple[np.ndarray, np.ndarray]:
        """Epochs at which all trials were evaluated, and their mean errors at these."""
        common = sorted(set.intersection(*(set(epochs) for epochs, _ in self.trials)))
        values = [[dict(zip(*trial, strict=True))[e] for e in common] for trial in self.trials]
        return np.array(common), np.mean(values, axis=0)


def by_epoch(line: Line) -> tuple[list[float], list[float]]:
    """The epochs of a trial's evaluations, and its errors in percent.

    Early lines of the ledger have no epochs; these trials were evaluated after every epoch.
    """
    errors = line.get("errors") or [line["final_error"]]
    spaced = [line["epochs"] * (n + 1) / len(errors) for n in range(len(errors))]
    return line.get("error_epochs") or spaced, errors


def draw(path: str | os.PathLike, panels: Mapping[str, Sequence[Curve]]) -> None:
    """Draws the panels side by side, in the format given by the suffix of the path."""
    # Without pyplot, so that no display is needed.
    figure = Figure(figsize=(7.6 * len(panels), 5.4), layout="constrained")
    ncols = 4 if len(panels) > 1 else 2  # one panel is too narrow for four columns
    figure.legend(handles=_legend(), loc="outside lower center", ncols=ncols, frameon=False)
    for axes, (title, curves) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        axes.set_title(title, loc="left", fontsize=11)
        _panel(axes, curves)
    lettering.save(figure, path, 110)


def _legend() -> list[Line2D]:
    def handle(label: str, **look) -> Line2D:
        return Line2D([], [], label=label, **look)

    (red, solid), (blue, dashed) = ROUTED, UNROUTED
    return [
        handle("routed by the image", color=red, linestyle=solid),
        handle("not routed", color=blue, linestyle=dashed),
        handle("single trials", color="#999999", linewidth=0.7),
        handle(
            "the paper's error, after 200 or 350 epochs",
            color="#555555",
            marker=PAPERS,
            linestyle="none",
        ),
    ]


def _panel(axes: Axes, curves: Sequence[Curve]) -> None:
    ends, last = [], max(max(epochs) for curve in curves for epochs, _ in curve.trials)
    numbers = {True: 0, False: 0}
    for curve in curves:
        color, style = ROUTED if curve.routed else UNROUTED
        marker = MARKERS[numbers[curve.routed] % len(MARKERS)]
        numbers[curve.routed] += 1
        for trial in curve.trials if len(curve.trials) > 1 else ():
            axes.plot(*trial, color=color, linewidth=0.6, alpha=0.5)
        epochs, errors = curve.mean
        every = max(1, len(epochs) // 8)
        look = {"linewidth": 1.4, "marker": marker, "markersize": 4.5, "markevery": every}
        axes.plot(epochs, errors, color=color, linestyle=style, **look)
        if curve.paper is not None:
            axes.plot(last, curve.paper, marker=PAPERS, color=color, clip_on=False, markersize=7)
        ends.append((errors[-1], f"{curve.network} {errors[-1]:.2f}", marker, color))
    _scales(axes, curves, last)
    _names(axes, ends)


def _scales(axes: Axes, curves: Iterable[Curve], last: float) -> None:
    values = [value for curve in curves for _, errors in curve.trials for value in errors]
    values += [curve.paper for curve in curves if curve.paper is not None]
    low, high = min(values) / 1.08, max(values) * 1.08
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(FixedLocator([tick for tick in TICKS if low <= tick <= high]))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlim(0, last)
    axes.set(xlabel="epochs of training", ylabel="test error (%)")
    axes.grid(color="#EEEEEE", zorder=0)
    axes.spines[["top", "right"]].set_visible(False)


def _names(axes: Axes, ends: Sequence[tuple[float, str, str, str]]) -> None:
    """Labels the curves at the right edge, moved apart so that labels do not overlap."""
    low, high = np.log(axes.get_ylim())
    ends = sorted(ends)
    heights = [(np.log(error) - low) / (high - low) for error, *_ in ends]
    for height, at, (_, words, marker, color) in zip(heights, apart(heights), ends, strict=True):
        place = {"transform": axes.transAxes, "clip_on": False, "color": color}
        axes.plot([1.02, 1.06], [height, at], linewidth=0.6, **place)
        axes.plot(1.075, at, marker=marker, markersize=5, **place)
        axes.text(1.095, at, words, va="center", fontsize=9, **place)


def apart(heights: Sequence[float], distance: float = APART) -> list[float]:
    """Moves increasing numbers until neighbours are at least ``distance`` apart."""
    up, down = [], []
    for height in heights:
        up.append(max([height, *(up[-1:] and [up[-1] + distance])]))
    for height in reversed(heights):
        down.append(min([height, *(down[-1:] and [down[-1] - distance])]))
    return [(a + b) / 2 for a, b in zip(up, reversed(down), strict=True)]
