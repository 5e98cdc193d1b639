"""``curves.png``: loss, error, and the routers' entropies and shares over the epochs of a run."""

from itertools import count, cycle, takewhile

from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from multipath_jax.data.datasets import HELD_OUT, TEST
from multipath_jax.metrics_file import SPLITS, errors_by_set, read_metrics
from multipath_jax.training.hooks import CURVES_FILE
from multipath_jax.utils import lettering

# The color-blind safe palette of Okabe and Ito.
COLORS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
    "#F0E442",
)
ENTROPY = "/entropy"


def draw(workdir: epath.Path) -> list[epath.Path]:
    """Draws the curves of a workdir's ``metrics.jsonl``.

    Args:
      workdir: the workdir of a run.

    Returns:
      The path of the figure, in a list that is empty if there are no metrics.
    """
    lines = read_metrics(workdir)
    if not lines:
        return []
    routers = sorted(
        {key.removesuffix(ENTROPY) for line in lines for key in line if ENTROPY in key}
    )
    columns = max(3, len(routers))
    figure = Figure(figsize=(3.4 * columns, 6.0 if routers else 3.2), layout="constrained")
    rows = figure.subfigures(2, 1) if routers else [figure]
    loss, error, entropy = rows[0].subplots(1, 3)
    for axes, measure, label in ((loss, "loss", "loss"), (error, "error", "error (%)")):
        _lines(axes, lines, _splits(lines, measure), label)
    _entropies(entropy, lines, routers)
    if routers:
        panels = rows[1].subplots(1, len(routers), squeeze=False, sharey=True)[0]
        for panel, router in zip(panels, routers, strict=True):
            _shares(panel, lines, router)
        panels[0].set_ylabel("share of each output path")
    path = epath.Path(workdir) / CURVES_FILE
    lettering.save(figure, path, 120)
    return [path]


def _splits(lines: list[dict], measure: str) -> dict[str, str]:
    """The labels of the curves by key of the metrics, for training and evaluation."""
    held_out = any(f"{HELD_OUT}/{measure}" in line for line in lines)
    split = HELD_OUT if held_out else TEST
    names = {f"train/{measure}": "training", f"{split}/{measure}": SPLITS[split]}
    sets = errors_by_set(key for line in lines for key in line)
    return names | {f"{split}/{name}/{measure}": name for name in sets}


def _series(lines: list[dict], key: str) -> tuple[list[float], list[float]]:
    """The epochs and values of the lines with this key."""
    points = [
        (line["epoch"], line[key])
        for line in lines
        if line.get(key) is not None and line.get("epoch") is not None
    ]
    epochs, values = zip(*points, strict=True) if points else ((), ())
    return list(epochs), list(values)


def _lines(axes: Axes, lines: list[dict], names: dict[str, str], label: str) -> None:
    for color, (key, name) in zip(cycle(COLORS), names.items(), strict=False):
        epochs, values = _series(lines, key)
        axes.plot(epochs, values, color=color, label=f"{name} {values[-1]:.3g}" if values else name)
    axes.set(xlabel="epoch", ylabel=label)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)


def _entropies(axes: Axes, lines: list[dict], routers: list[str]) -> None:
    """Plots the entropy of the gates relative to uniform gates: 1 is uniform, 0 one-hot."""
    for number, router in enumerate(routers):
        axes.plot(
            *_series(lines, router + ENTROPY),
            color=COLORS[number % len(COLORS)],
            linestyle="-" if number < len(COLORS) else "--",
        )
    axes.set(xlabel="epoch", ylabel="entropy of the gates", ylim=(0, 1.02))
    if routers:
        options = {"fontsize": "small", "loc": "upper left", "bbox_to_anchor": (1, 1)}
        names = map(_short, routers)
        lettering.legend(axes, axes.get_lines(), names, frameon=False, **options)
    else:
        axes.text(0.5, 0.5, "no routers", ha="center", transform=axes.transAxes)


def _shares(axes: Axes, lines: list[dict], router: str) -> None:
    """Plots the mean gates of one router, stacked; they sum to 1."""
    keys = takewhile(
        lambda key: any(key in line for line in lines),
        (f"{router}/share_{number}" for number in count(1)),
    )
    series = [_series(lines, key) for key in keys]
    colors = [COLORS[number % len(COLORS)] for number in range(len(series))]
    axes.stackplot(series[0][0], *(values for _, values in series), colors=colors, alpha=0.8)
    for number, (_, values) in enumerate(series):
        below = sum(others[-1] for _, others in series[:number])
        axes.annotate(
            f"{number + 1}",
            (0.98, below + values[-1] / 2),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="center",
            color="white",
            weight="bold",
        )
    axes.set(xlabel="epoch", ylim=(0, 1))
    axes.set_title(_short(router), **lettering.as_written(_short(router)))
    axes.margins(x=0)


def _short(router: str) -> str:
    return router.removeprefix("routing/").replace("_", " ")
