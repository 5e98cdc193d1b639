"""The distributions of the weights of parallel paths (Section 7.4, Fig. 11).

The distance between two paths is the Kolmogorov-Smirnov statistic, the largest difference between
the cumulative distributions of their weights: 0 for equal distributions, 1 for disjoint ones,
independent of scale. Two baselines put it into perspective: the distance after random exchange of
the weights between the two paths, and that of the paths before training. Paths with the same
distribution of weights can still compute different functions.
"""

import dataclasses
import os
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Float, PyTree
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import ks_2samp

from multipath_jax.figures import style
from multipath_jax.gates import Outline, Trained
from multipath_jax.utils import lettering

BINS = 80  # largest number of bins
SHUFFLES = 5  # random exchanges per pair of paths


@dataclasses.dataclass(frozen=True)
class LayerWeights:
    """The kernels of one layer in m parallel paths.

    Attributes:
      name: name of the layer.
      weights: flattened kernels, ``[m k]``.
      distances: distances between paths, by pairs of their numbers, counted from one.
      by_chance: mean distance over all pairs after random exchange of their weights.
      untrained: mean distance over all pairs before training.
    """

    name: str
    weights: Float[np.ndarray, "m k"]
    distances: dict[tuple[int, int], float]
    by_chance: float
    untrained: float

    @property
    def distance(self) -> float:
        """The mean distance over all pairs of paths."""
        return float(np.mean(list(self.distances.values())))


def distance(a: Float[np.ndarray, " k"], b: Float[np.ndarray, " l"]) -> float:
    """The Kolmogorov-Smirnov statistic of two samples ``[k]`` and ``[l]``, from 0 to 1."""
    return float(ks_2samp(a, b, method="asymp").statistic)


def parallel_layers(params: PyTree, outline: Outline) -> list[str]:
    """The names of the layers with kernels in two or more parallel paths, in order of execution.

    They are recognized by the number of axes of their kernels: four for a convolution and two for a
    dense layer, plus one for the paths.

    Args:
      params: the parameters of the network.
      outline: its outline.
    """
    order = {path: number for number, path in enumerate(outline.calls)}
    flat = traverse_util.flatten_dict(params)
    found = [
        path[:-1]
        for path, leaf in flat.items()
        if path[-1] == "kernel" and leaf.ndim in (3, 5) and len(leaf) > 1 and path[:-1] in order
    ]
    return ["/".join(path) for path in sorted(found, key=order.__getitem__)]


def layer_weights(
    trained: Trained, names: Sequence[str], image_shape: tuple[int, int, int], seed: int = 0
) -> list[LayerWeights]:
    """Computes the weights and distances of layers.

    Args:
      trained: the network.
      names: names of the layers.
      image_shape: height, width and channels.
      seed: seed of the random exchanges and of the untrained network.
    """
    fresh = jax.jit(trained.model.init)(jax.random.key(seed), jnp.zeros((1, *image_shape)))
    before, after = (
        traverse_util.flatten_dict(jax.device_get(tree["params"]), sep="/")
        for tree in (fresh, trained.variables)
    )
    return [_layer(name, *(t[f"{name}/kernel"] for t in (before, after)), seed) for name in names]


def _layer(name: str, before: np.ndarray, after: np.ndarray, seed: int) -> LayerWeights:
    before, after = (
        kernel.reshape(len(kernel), -1).astype(np.float32) for kernel in (before, after)
    )
    rng = np.random.default_rng(seed)
    mixed = [
        np.split(rng.permutation(np.concatenate(pair)), 2)
        for pair in combinations(after, 2)
        for _ in range(SHUFFLES)
    ]
    return LayerWeights(
        name,
        after,
        _pairs(after),
        by_chance=float(np.mean([distance(*pair) for pair in mixed])),
        untrained=float(np.mean(list(_pairs(before).values()))),
    )


def _pairs(weights: Float[np.ndarray, "m k"]) -> dict[tuple[int, int], float]:
    numbered = enumerate(weights, start=1)
    return {(i, j): distance(a, b) for (i, a), (j, b) in combinations(numbered, 2)}


def summary(layer: LayerWeights) -> dict[str, Any]:
    """The distances of a layer, for JSON."""
    return {
        "layer": layer.name,
        "weights_of_a_path": layer.weights.shape[1],
        "distance": layer.distance,
        "distances": {f"{i}-{j}": value for (i, j), value in layer.distances.items()},
        "by_chance": layer.by_chance,
        "untrained": layer.untrained,
    }


def draw(path: str | os.PathLike, layers: Sequence[LayerWeights]) -> None:
    """Draws a panel for each layer with a histogram for each path and the distances.

    Args:
      path: file to write.
      layers: the result of `layer_weights`.
    """
    columns = min(2, len(layers))
    rows = -(-len(layers) // columns)
    figure = Figure(figsize=(style.WIDTH / 2 * columns, 0.4 + 2.5 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes, layer in zip(panels.flat, layers, strict=False):
        _panel(axes, layer)
    for axes in panels.flat[len(layers) :]:
        axes.set_axis_off()
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=len(labels), fontsize=9, frameon=False
    )
    style.save(figure, path)


def _panel(axes: Axes, layer: LayerWeights) -> None:
    # Without the outermost 0.1 %, so that a few outliers do not determine the range.
    bins = min(BINS, round(layer.weights.shape[1] ** 0.5))
    edges = np.linspace(*np.quantile(layer.weights, (0.0005, 0.9995)), bins + 1)
    for number, row in enumerate(layer.weights):
        density, _ = np.histogram(row, edges, density=True)
        width = 1.4 if number < 4 else 0.9
        line = "-" if number < 4 else "--"
        color = style.COLORS[number % len(style.COLORS)]
        axes.stairs(density, edges, color=color, lw=width, ls=line, label=f"path {number + 1}")
    words = (
        f"D = {layer.distance:.3f}\nby chance {layer.by_chance:.3f}\n"
        f"untrained {layer.untrained:.3f}"
    )
    axes.text(0.98, 0.95, words, ha="right", va="top", fontsize=8.5, transform=axes.transAxes)
    name = style.readable(layer.name)
    axes.set_title(name, fontsize=10, **lettering.as_written(name))
    axes.set_xlabel("weight", fontsize=9)
    axes.set_yticks(())
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right", "left"]].set_visible(False)
