"""The routes of images through a discrete network, by class.

The route of an image is the set of its active paths behind every router. Reported are the numbers
of different routes, and the mutual information of route and class, which is between 0 and the
entropy of the classes.
"""

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from matplotlib.figure import Figure

from multipath_jax.figures import style
from multipath_jax.gates import Observation, RouterRecord
from multipath_jax.utils import lettering
from multipath_jax.utils.names import printable

MOST = 0.9  # fraction of the images in `Taken.most`
SHUFFLES = 20


@dataclasses.dataclass(frozen=True)
class Taken:
    """The numbers of routes of some images.

    Attributes:
      name: the class of the images, or ``"all"``.
      images: number of images.
      routes: number of different routes.
      most: smallest number of routes that 90 % of the images take.
    """

    name: str
    images: int
    routes: int
    most: int


@dataclasses.dataclass(frozen=True)
class Information:
    """The mutual information of routes and classes, in bits.

    Attributes:
      name: the router whose active outputs are the route, or ``"all"``.
      bits: the mutual information of route and class, estimated from counts.
      chance: its mean for shuffled classes, over `SHUFFLES` shuffles: the bias of the estimate.
      entropy: the entropy of the classes, the upper bound.
    """

    name: str
    bits: float
    chance: float
    entropy: float


@dataclasses.dataclass(frozen=True)
class PathsTaken:
    """The routes of the observed images.

    Attributes:
      possible: number of possible routes.
      taken: the numbers of routes of all images, then of every class.
      information: the mutual information for the whole route, then for each router.
      shares: fraction of a class's images for which a path is active, ``[classes paths]``; the
        paths of all routers are concatenated.
      paths: number of outputs of every router.
    """

    possible: int
    taken: tuple[Taken, ...]
    information: tuple[Information, ...]
    shares: Float[np.ndarray, "classes paths"]
    paths: tuple[int, ...]


def paths_taken(
    observation: Observation,
    labels: Int[np.ndarray, " b"],
    class_names: Sequence[str],
    seed: int = 0,
) -> PathsTaken:
    """Counts the routes of the observed images, by class.

    Args:
      observation: the records of a network with at least one discrete router.
      labels: the labels of the same images.
      class_names: names of all classes.
      seed: seed of the shuffles.

    Returns:
      The numbers of routes, and the mutual information with the classes.
    """
    active = [np.any(router.chosen, axis=0).T for router in discrete(observation)]  # [n b]
    each = [_numbered(one.T) for one in active]
    whole = _numbered(np.stack(each, axis=1))
    present = np.unique(labels)
    groups = [("all", np.ones(len(labels), bool))]
    groups += [(class_names[label], labels == label) for label in present]
    names = ["all", *(router.name for router in discrete(observation))]
    return PathsTaken(
        possible=possible(observation),
        taken=tuple(_taken(name, whole[where]) for name, where in groups),
        information=tuple(
            information(name, route, labels, seed)
            for name, route in zip(names, [whole, *each], strict=True)
        ),
        shares=np.stack(
            [np.concatenate([one[:, labels == label].mean(axis=1) for one in active])
             for label in present]
        ),
        paths=tuple(map(len, active)),
    )  # fmt: skip


def discrete(observation: Observation) -> list[RouterRecord]:
    """The records of the discrete routers."""
    return [router for router in observation.routers if router.chosen is not None]


def possible(observation: Observation) -> int:
    """The number of possible routes: sequences of the sets of active paths behind every router.

    If a paths are active before a router, and each chooses k of n, the set behind it has between k
    and min(a k, n) paths.
    """
    counts = {1: 1}  # routes so far, by the number of paths that are active now
    for router in discrete(observation):
        m, _, n = router.chosen.shape
        k = int(router.chosen.sum(axis=2).max())
        counts = {
            size: math.comb(n, size)
            * sum(count for a, count in counts.items() if k <= size <= min(a, m) * k)
            for size in range(1, n + 1)
        }
        counts = {size: count for size, count in counts.items() if count}
    return sum(counts.values())


def information(
    name: str, routes: Int[np.ndarray, " b"], classes: Int[np.ndarray, " b"], seed: int = 0
) -> Information:
    """The mutual information of routes and classes, or other groups of images.

    Args:
      name: what the routes are of.
      routes: the number of the route of each image.
      classes: the number of its class.
      seed: seed of the shuffles.
    """
    rng = np.random.default_rng(seed)
    shuffled = [rng.permutation(classes) for _ in range(SHUFFLES)]
    return Information(
        name,
        mutual_information(routes, classes),
        float(np.mean([mutual_information(routes, other) for other in shuffled])),
        entropy(classes),
    )


def mutual_information(a: Int[np.ndarray, " b"], b: Int[np.ndarray, " b"]) -> float:
    """The mutual information H(a) + H(b) - H(a, b) in bits, estimated from counts."""
    both = _numbered(np.stack([a, b], axis=1))
    return max(0.0, entropy(a) + entropy(b) - entropy(both))


def entropy(values: Int[np.ndarray, " b"]) -> float:
    """The entropy in bits, estimated from counts."""
    _, counts = np.unique(values, return_counts=True)
    p = counts / counts.sum()
    return float(-(p * np.log2(p)).sum())


def _numbered(rows: Int[np.ndarray, "b _"] | Bool[np.ndarray, "b _"]) -> Int[np.ndarray, " b"]:
    """Numbers the rows; equal rows have equal numbers."""
    _, numbers = np.unique(rows, axis=0, return_inverse=True)
    return numbers.reshape(-1)


def _taken(name: str, routes: Int[np.ndarray, " b"]) -> Taken:
    _, counts = np.unique(routes, return_counts=True)
    carried = np.cumsum(np.sort(counts)[::-1])
    most = 1 + int(np.searchsorted(carried, MOST * len(routes)))
    return Taken(name, len(routes), len(counts), most)


def table(found: PathsTaken) -> str:
    """Formats the numbers of routes and the mutual information as two tables."""
    lines = [
        f"different routes of the images, of {found.possible:,} possible routes; and the number of "
        f"routes that {100 * MOST:.0f} % of the images take:",
        f"{'class':16}{'images':>8}{'routes':>8}{f'{100 * MOST:.0f} %':>8}",
    ]
    for row in found.taken:
        lines.append(f"{printable(row.name):16}{row.images:8}{row.routes:8}{row.most:8}")
    lines.append(
        "mutual information of route and class in bits (for shuffled classes; entropy of classes):"
    )
    for row in found.information:
        lines.append(f"{row.name:16}{row.bits:8.3f} ({row.chance:.3f}; {row.entropy:.3f})")
    return "\n".join(lines)


def summary(found: PathsTaken) -> dict[str, Any]:
    """The results as a dictionary for a JSON file."""
    return dataclasses.asdict(found) | {"shares": found.shares.tolist()}


def draw(path: str | os.PathLike, found: PathsTaken) -> None:
    """Draws the fraction of every class's images for which each path is active.

    Args:
      path: file to write.
      found: the result of `paths_taken`.
    """
    names = [printable(row.name) for row in found.taken[1:]]
    rows, columns = found.shares.shape
    size = min(style.WIDTH, max(5.0, 2.4 + 0.3 * columns)), min(11, 1.6 + 0.25 * max(rows, 6))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    mapped = axes.imshow(found.shares, cmap=style.GATE, vmin=0, vmax=1, aspect="auto")
    axes.set_yticks(range(rows), names, fontsize=8, **lettering.as_written(*names))
    axes.set_xticks(range(columns), [j + 1 for n in found.paths for j in range(n)], fontsize=7)
    axes.set_xlabel("paths behind each router", fontsize=9)
    for edge in np.cumsum(found.paths)[:-1]:
        axes.axvline(edge - 0.5, color="black", lw=0.8)
    bar = figure.colorbar(mapped, ax=axes, aspect=20)
    bar.set_label("fraction of the images of a class", fontsize=8)
    style.save(figure, path)
