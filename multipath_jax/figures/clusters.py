"""Clusters of the gates at each router, compared to the classes of the images.

At every router, an image is represented by the vector of all its gates. K-means groups these
vectors into as many clusters as there are classes. The adjusted mutual information (AMI) of
clusters and classes is 1 if they are identical, and 0 on average if they are independent.
"""

import dataclasses
import os
import warnings
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_mutual_info_score
from tqdm import tqdm

from multipath_jax.figures import style
from multipath_jax.gates import Observation
from multipath_jax.utils import lettering
from multipath_jax.utils.names import printable

COLUMNS = 3
DRAWN = 2000  # largest number of points in a panel; more would overlap


@dataclasses.dataclass(frozen=True)
class Clusters:
    """The clusters of b images at one router.

    Attributes:
      router: number of the router, from one.
      assigned: cluster of each image, ``[b]``.
      agreement: adjusted mutual information of clusters and classes.
      plane: first two principal components of the gate vectors, ``[b 2]``.
      explained: fraction of the variance in these components.
    """

    router: int
    assigned: Int[np.ndarray, " b"]
    agreement: float
    plane: Float[np.ndarray, "b 2"]
    explained: float


def clusters(
    observation: Observation, labels: Int[np.ndarray, " b"], seed: int = 0
) -> list[Clusters]:
    """Computes the clusters at every router.

    Args:
      observation: the records for b images.
      labels: their labels, ``[b]``.
      seed: seed of k-means.
    """
    numbered = enumerate(observation.routers, start=1)
    bar = tqdm(numbered, "clustering", len(observation.routers), leave=False, disable=None)
    return [_at(number, router.vectors, labels, seed) for number, router in bar]


def _at(number, vectors, labels, seed) -> Clusters:
    # In float64, so that clusters do not depend on the order of summation.
    vectors = vectors.astype(np.float64)
    distinct = len(np.unique(vectors, axis=0))
    means = KMeans(min(len(np.unique(labels)), distinct), n_init=4, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # nearly identical vectors
        assigned = means.fit_predict(vectors)
    centered = vectors - vectors.mean(axis=0)
    total = float(np.square(centered).sum())
    if total < 1e-12:  # all images have the same gates
        return Clusters(number, assigned, 0.0, np.zeros((len(vectors), 2)), 1.0)
    plane = PCA(2, svd_solver="full").fit_transform(vectors)
    agreement = float(adjusted_mutual_info_score(labels, assigned))
    explained = float(np.square(plane).sum() / total)
    return Clusters(number, assigned, agreement, plane, explained)


def summary(one: Clusters) -> dict[str, int | float]:
    """The numbers of one router, for JSON."""
    return {"router": one.router, "agreement": one.agreement, "explained": one.explained}


def draw(
    path: str | os.PathLike,
    found: Sequence[Clusters],
    labels: Int[np.ndarray, " b"],
    class_names: Sequence[str],
    classes: Sequence[int],
) -> None:
    """Draws the principal components at every router, and the agreement by router.

    Args:
      path: file to write.
      found: the result of `clusters`.
      labels: labels of the images, ``[b]``.
      class_names: names in the order of the labels.
      classes: labels of the classes to draw in color.
    """
    count = len(found) + 1
    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(style.WIDTH, 0.5 + 3.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    points = np.random.default_rng(0).permutation(len(labels))[:DRAWN]
    for axes, one in zip(panels, found, strict=False):
        _plane(axes, one, labels, classes, points)
    _agreement(panels[len(found)], found)
    for axes in panels[count:]:
        axes.set_axis_off()
    marks = panels[0].get_lines()
    names = ["other classes"] * (len(marks) > len(classes))
    names += [printable(class_names[number]) for number in classes]
    lettering.legend(
        figure, marks, names, loc="outside lower center", ncols=min(len(names), 9), fontsize=8,
        frameon=False, handletextpad=0.2,
    )  # fmt: skip
    style.save(figure, path)


def _plane(axes: Axes, one: Clusters, labels, classes, points) -> None:
    others = points[~np.isin(labels[points], classes)]
    if len(others):
        axes.plot(*one.plane[others].T, ".", color="#CCCCCC", ms=3)
    for place, number in enumerate(classes):
        chosen = points[labels[points] == number]
        count = len(style.COLORS)
        marker = style.MARKERS[(place + place // count) % count]
        axes.plot(
            *one.plane[chosen].T,
            marker,
            color=style.COLORS[place % count],
            markersize=4,
            markeredgewidth=0,
            alpha=0.7,
        )
    axes.set_title(f"router {one.router}: AMI {one.agreement:.2f}", fontsize=10)
    axes.set_xlabel(f"two components, {100 * one.explained:.0f} % of the variance", fontsize=8)
    axes.set_aspect("equal", adjustable="datalim")
    axes.tick_params(labelsize=7)
    axes.locator_params(nbins=6)  # labels of more ticks would overlap


def _agreement(axes: Axes, found: Sequence[Clusters]) -> None:
    numbers = [one.router for one in found]
    values = [one.agreement for one in found]
    bars = axes.bar(numbers, values, color=style.COLORS[0], width=0.6)
    axes.bar_label(bars, fmt="%.2f", fontsize=8)
    axes.set_ylim(0, max(1.15 * max(values), 0.1))
    axes.set_xticks(numbers)
    axes.set_title("clusters of gates and classes", fontsize=10)
    axes.set_xlabel("router", fontsize=8)
    axes.set_ylabel("adjusted mutual information", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
