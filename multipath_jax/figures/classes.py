"""Section 7.3 for all gates and all classes at once: a matrix of mean gates."""

import dataclasses
import os
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure

from multipath_jax.figures import style
from multipath_jax.figures.selectors import GateIndex
from multipath_jax.gates import Observation
from multipath_jax.utils import lettering
from multipath_jax.utils.names import shown

NAMED = 50  # so many classes have room for their names


@dataclasses.dataclass(frozen=True)
class ClassMeans:
    """The mean of every gate within every class.

    Attributes:
      gates: all gates of all routers, router after router.
      class_names: of the classes that have images.
      means: not a number for classes without images.
      overall: over all images.
    """

    gates: tuple[GateIndex, ...]
    class_names: tuple[str, ...]
    means: Float[np.ndarray, "classes gates"]
    overall: Float[np.ndarray, " gates"]


def class_means(
    observation: Observation, labels: Int[np.ndarray, " b"], class_names: Sequence[str]
) -> ClassMeans:
    """The means over the observed images."""
    gates = tuple(
        GateIndex(number, i, j)
        for number, router in enumerate(observation.routers, start=1)
        for i in range(1, router.gates.shape[0] + 1)
        for j in range(1, router.gates.shape[2] + 1)
    )
    vectors = np.concatenate([router.vectors for router in observation.routers], axis=1)
    present = np.unique(labels)
    means = np.stack([vectors[labels == number].mean(axis=0) for number in present])
    names = tuple(class_names[number] for number in present)
    return ClassMeans(gates, names, means, vectors.mean(axis=0))


def draw(path: str | os.PathLike, found: ClassMeans) -> None:
    """Draws each class's difference from the mean over all images, which is drawn above."""
    difference = found.means - found.overall
    rows = len(found.class_names)
    height = min(1.9 + (0.22 if rows <= NAMED else 0.03) * max(rows, 6), 11)
    width = min(style.WIDTH, max(6.0, 2.6 + 0.26 * len(found.gates)))
    figure = Figure(figsize=(width, height), layout="constrained")
    mean, classes = figure.subplots(2, 1, sharex=True, height_ratios=(1, max(rows, 6)))
    values = mean.imshow(found.overall[None], cmap=style.GATE, vmin=0, vmax=1, aspect="auto")
    reach = max(float(np.abs(difference).max()), 1e-6)
    # Orange and violet are told apart by all eyes; white is the mean.
    coloured = classes.imshow(difference, cmap="PuOr", vmin=-reach, vmax=reach, aspect="auto")
    mean.set_yticks([0], ["all"], fontsize=8)
    mean.tick_params(bottom=False)
    if rows <= NAMED:
        names = [shown(name) for name in found.class_names]
        classes.set_yticks(range(rows), names, fontsize=8, **lettering.as_written(*names))
    else:
        classes.set_ylabel(f"{rows} classes, in their order")
    _gates(mean, classes, found.gates)
    bars = (values, mean, 4, "mean"), (coloured, classes, 20, "class mean less the mean of all")
    for mapped, axes, aspect, label in bars:
        bar = figure.colorbar(mapped, ax=axes, aspect=aspect)
        bar.set_label(label, fontsize=8)
        bar.ax.tick_params(labelsize=7)
    style.save(figure, path)


def _gates(mean, classes, gates: Sequence[GateIndex]) -> None:
    """Names the columns; white lines between the routers."""
    few = len(gates) <= 45
    labels = [f"{gate.input}-{gate.output}" if few else "" for gate in gates]
    classes.set_xticks(range(len(gates)), labels, fontsize=7, rotation=90)
    classes.set_xlabel("gates, from input to output", fontsize=9)
    numbers = np.array([gate.router for gate in gates])
    for number in np.unique(numbers):
        columns = np.flatnonzero(numbers == number)
        mean.text(
            columns.mean(), -0.8, f"router {number}", ha="center", va="bottom", fontsize=8
        ).set_in_layout(True)
        for axes in (mean, classes):
            axes.axvline(columns[-1] + 0.5, color="black", lw=0.8)
