"""Which paths a discrete network's images take, and what their routes say about their classes.

An image's route is what is active behind every router. Of the routes that there can be, few may
carry most images; and the mutual information of route and class says in bits how much of the class
the route tells, between none and the classes' entropy.
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
from multipath_jax.utils.names import shown

MOST = 0.9  # the share of images that a few routes carry
SHUFFLES = 20


@dataclasses.dataclass(frozen=True)
class Taken:
    """The routes of some images.

    Attributes:
      name: of their class, or ``"all"``.
      images: how many.
      routes: different ones among them.
      carry_most: the fewest routes that carry 90 % of them.
    """

    name: str
    images: int
    routes: int
    carry_most: int


@dataclasses.dataclass(frozen=True)
class Information:
    """What routes tell of classes, in bits.

    Attributes:
      name: the router's whose active outputs are the route, or ``"all"``.
      bits: the mutual information of route and class, from the counts.
      chance: the same with the classes shuffled, mean of `SHUFFLES`: what counts as few as these
        give where there is nothing to be told.
      entropy: of the classes, which is the most.
    """

    name: str
    bits: float
    chance: float
    entropy: float


@dataclasses.dataclass(frozen=True)
class PathsTaken:
    """Everything about the routes of the observed images.

    Attributes:
      possible: the routes that there can be.
      taken: of all images, then of every class.
      information: of all routers together, then of each.
      shares: the part of a class's images for which a path is active, router after router.
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
    """The routes of the observed images, by their classes.

    Args:
      observation: with a discrete router at least.
      labels: of the same images.
      class_names: of all classes.
      seed: of the shuffles.
    """
    active = [np.any(router.chosen, axis=0).T for router in discrete(observation)]  # [n b]
    each = [_numbered(one.T) for one in active]
    whole = _numbered(np.stack(each, axis=1))
    present = np.unique(labels)
    groups = [("all", np.ones(len(labels), bool))]
    groups += [(class_names[label], labels == label) for label in present]
    rng = np.random.default_rng(seed)
    shuffled = [rng.permutation(labels) for _ in range(SHUFFLES)]
    names = ["all", *(router.name for router in discrete(observation))]
    return PathsTaken(
        possible=possible(observation),
        taken=tuple(_taken(name, whole[where]) for name, where in groups),
        information=tuple(
            Information(
                name,
                mutual_information(route, labels),
                float(np.mean([mutual_information(route, other) for other in shuffled])),
                entropy(labels),
            )
            for name, route in zip(names, [whole, *each], strict=True)
        ),
        shares=np.stack(
            [np.concatenate([one[:, labels == label].mean(axis=1) for one in active])
             for label in present]
        ),
        paths=tuple(map(len, active)),
    )  # fmt: skip


def discrete(observation: Observation) -> list[RouterRecord]:
    """The routers that chose."""
    return [router for router in observation.routers if router.chosen is not None]


def possible(observation: Observation) -> int:
    """How many routes there can be: sequences of sets of active paths, router after router.

    Where a paths are active before a router and each chooses k of n, any set of k to a k paths, but
    no more than n, can be active behind it.
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


def mutual_information(a: Int[np.ndarray, " b"], b: Int[np.ndarray, " b"]) -> float:
    """In bits, from the counts: H(a) + H(b) - H(a, b)."""
    both = _numbered(np.stack([a, b], axis=1))
    return max(0.0, entropy(a) + entropy(b) - entropy(both))


def entropy(values: Int[np.ndarray, " b"]) -> float:
    """In bits, from the counts."""
    _, counts = np.unique(values, return_counts=True)
    p = counts / counts.sum()
    return float(-(p * np.log2(p)).sum())


def _numbered(rows: Int[np.ndarray, "b _"] | Bool[np.ndarray, "b _"]) -> Int[np.ndarray, " b"]:
    """A number for each row, the same for equal ones."""
    _, numbers = np.unique(rows, axis=0, return_inverse=True)
    return numbers.reshape(-1)


def _taken(name: str, routes: Int[np.ndarray, " b"]) -> Taken:
    _, counts = np.unique(routes, return_counts=True)
    carried = np.cumsum(np.sort(counts)[::-1])
    most = 1 + int(np.searchsorted(carried, MOST * len(routes)))
    return Taken(name, len(routes), len(counts), most)


def table(found: PathsTaken) -> str:
    """Both tables as text."""
    lines = [
        f"of {found.possible:,} possible routes, those that images take, and the fewest that carry "
        f"{100 * MOST:.0f} %:",
        f"{'class':16}{'images':>8}{'taken':>8}{'most':>8}",
    ]
    for row in found.taken:
        lines.append(f"{shown(row.name):16}{row.images:8}{row.routes:8}{row.carry_most:8}")
    lines.append("mutual information of route and class, in bits (by chance; at most):")
    for row in found.information:
        lines.append(f"{row.name:16}{row.bits:8.3f} ({row.chance:.3f}; {row.entropy:.3f})")
    return "\n".join(lines)


def summary(found: PathsTaken) -> dict[str, Any]:
    """The numbers, for a JSON file."""
    return dataclasses.asdict(found) | {"shares": found.shares.tolist()}


def draw(path: str | os.PathLike, found: PathsTaken) -> None:
    """Draws the part of every class's images for which each path is active."""
    names = [shown(row.name) for row in found.taken[1:]]
    rows, columns = found.shares.shape
    size = min(style.WIDTH, max(5.0, 2.4 + 0.3 * columns)), min(11, 1.6 + 0.25 * max(rows, 6))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    mapped = axes.imshow(found.shares, cmap=style.GATE, vmin=0, vmax=1, aspect="auto")
    axes.set_yticks(range(rows), names, fontsize=8, **lettering.as_written(*names))
    axes.set_xticks(range(columns), [j + 1 for n in found.paths for j in range(n)], fontsize=7)
    axes.set_xlabel("paths, router after router", fontsize=9)
    for edge in np.cumsum(found.paths)[:-1]:
        axes.axvline(edge - 0.5, color="black", lw=0.8)
    bar = figure.colorbar(mapped, ax=axes, aspect=20)
    bar.set_label("part of the class's images", fontsize=8)
    style.save(figure, path)
