"""A matrix of the mean gates of all classes (cf. Section 7.3)."""

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
from multipath_jax.utils.names import printable

NAMED = 50  # largest number of classes for which names are drawn


@dataclasses.dataclass(frozen=True)
class ClassMeans:
    """The mean of every gate for every class.

    Attributes:
      gates: all gates of all routers, in order.
      class_names: names of the classes that have images.
      means: mean gates by class, ``[classes gates]``.
      overall: mean gates over all images, ``[gates]``.
    """

    gates: tuple[GateIndex, ...]
    class_names: tuple[str, ...]
    means: Float[np.ndarray, "classes gates"]
    overall: Float[np.ndarray, " gates"]


def class_means(
    observation: Observation, labels: Int[np.ndarray, " b"], class_names: Sequence[str]
) -> ClassMeans:
    """Computes the mean gates by class.

    Args:
      observation: the records for b images.
      labels: their labels, ``[b]``.
      class_names: names in the order of the labels.
    """
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
    """Draws the mean gates over all images, and below it the difference of each class from it.

    Args:
      path: file to write.
      found: the result of `class_means`.
    """
    difference = found.means - found.overall
    rows = len(found.class_names)
    height = min(1.9 + (0.22 if rows <= NAMED else 0.03) * max(rows, 6), 11)
    width = min(style.WIDTH, max(6.0, 2.6 + 0.26 * len(found.gates)))
    figure = Figure(figsize=(width, height), layout="constrained")
    mean, classes = figure.subplots(2, 1, sharex=True, height_ratios=(1, max(rows, 6)))
    values = mean.imshow(found.overall[None], cmap=style.GATE, vmin=0, vmax=1, aspect="auto")
    reach = max(float(np.abs(difference).max()), 1e-6)
    # A diverging, color-blind safe map: white is the mean.
    differences = classes.imshow(difference, cmap="PuOr", vmin=-reach, vmax=reach, aspect="auto")
    mean.set_yticks([0], ["all"], fontsize=8)
    mean.tick_params(bottom=False)
    if rows <= NAMED:
        names = [printable(name) for name in found.class_names]
        classes.set_yticks(range(rows), names, fontsize=8, **lettering.as_written(*names))
    else:
        classes.set_ylabel(f"{rows} classes, in order")
    _gates(mean, classes, found.gates)
    bars = (values, mean, 4, "mean"), (differences, classes, 20, "class mean minus overall mean")
    for mapped, axes, aspect, label in bars:
        bar = figure.colorbar(mapped, ax=axes, aspect=aspect)
        bar.set_label(label, fontsize=8)
        bar.ax.tick_params(labelsize=7)
    style.save(figure, path)


def _gates(mean, classes, gates: Sequence[GateIndex]) -> None:
    """Labels the columns and draws lines between routers."""
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
