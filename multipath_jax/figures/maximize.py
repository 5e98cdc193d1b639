"""Images that maximize a gate: test images, and one by gradient ascent (Section 7.2, Fig. 9).

Gradient ascent maximizes the relevance score of the gate, before the softmax, with respect to the
input of the trained network, as in Simonyan et al. [61] for classes. It starts from noise, with an
L2 penalty, and shifts the image by a few random pixels before every step, which suppresses
high-frequency patterns.
"""

import dataclasses
import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Float, Int, Num
from matplotlib.figure import Figure, SubFigure
from tqdm import tqdm

from multipath_jax.figures import style
from multipath_jax.figures.selectors import GateIndex
from multipath_jax.gates import Observation, Trained, outline

SHOWN = 10  # number of images with the highest, and with the lowest values
COLUMNS = 5
BYTES = np.array([0, 255], np.uint8)  # the lowest and highest value of a uint8 pixel


@dataclasses.dataclass(frozen=True)
class Ascent:
    """The hyperparameters of gradient ascent.

    Attributes:
      steps: number of steps.
      rate: initial step size: the root mean square change of the normalized input in a step. It
        decays linearly to zero.
      penalty: weight of the mean square of the input.
      shift: largest random shift, as a fraction of the side of the image.
      seed: seed of the initial noise and of the shifts.
    """

    steps: int = 256
    rate: float = 0.05
    penalty: float = 0.02
    shift: float = 1 / 16
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Synthesized:
    """The results of gradient ascent for g gates.

    Attributes:
      images: images as stored, ``[g h w c]``.
      before, after: relevance scores of the initial noise and of ``images``, ``[g]``.
    """

    images: Num[np.ndarray, "g h w c"]
    before: Float[np.ndarray, " g"]
    after: Float[np.ndarray, " g"]


@dataclasses.dataclass(frozen=True)
class Maximum:
    """The images with the highest and lowest values of one gate.

    Attributes:
      gate: the gate.
      highest, lowest: indices of the images with the highest and lowest activations, ``[k]``,
        sorted.
      values: activations for all images, ``[b]``.
      synthesized: the image from gradient ascent, ``[h w c]``.
      score: the relevance score of ``synthesized``.
      highest_score: the highest relevance score of the images.
    """

    gate: GateIndex
    highest: Int[np.ndarray, " k"]
    lowest: Int[np.ndarray, " k"]
    values: Float[np.ndarray, " b"]
    synthesized: Num[np.ndarray, "h w c"]
    score: float
    highest_score: float


def extremes(
    values: Float[np.ndarray, " b"], count: int = SHOWN
) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"]]:
    """Indices of the highest values, decreasing, and of the lowest values, increasing."""
    order = np.argsort(values, kind="stable")
    return order[::-1][:count], order[:count]


def synthesize(
    trained: Trained,
    gates: Sequence[GateIndex],
    image_shape: tuple[int, int, int],
    ascent: Ascent = Ascent(),
    levels: Num[np.ndarray, "2"] = BYTES,
) -> Synthesized:
    """Computes an image for each gate by gradient ascent, all in one batch.

    Args:
      trained: the network.
      gates: the g gates.
      image_shape: height, width and channels.
      ascent: the hyperparameters.
      levels: the lowest and highest value of a pixel, in the type of the pixels (`levels_of`).
    """
    columns = _columns(trained, gates, image_shape)
    low, high = (trained.prepare(jnp.full((1, *image_shape), level)) for level in levels)
    reach = round(ascent.shift * min(image_shape[:2]))

    @jax.jit
    def scores(variables, x):
        _, recorded = trained.model.apply(variables, x, train=False, mutable=["intermediates"])
        flat = traverse_util.flatten_dict(recorded["intermediates"])
        return jnp.stack([flat[key][0][i, b, j] for b, (key, i, j) in enumerate(columns)])

    @jax.jit
    def step(variables, x, key, rate):
        offsets = jax.random.randint(key, (len(x), 2), -reach, reach + 1)
        x = jax.vmap(lambda image, by: jnp.roll(image, by, (0, 1)))(x, offsets)

        def objective(x):  # the images are independent, so the gradient of the sum is that of each
            return jnp.sum(scores(variables, x) - ascent.penalty * jnp.mean(x**2, axis=(1, 2, 3)))

        gradient = jax.grad(objective)(x)
        # Normalized: gradients of different gates differ by orders of magnitude.
        length = jnp.sqrt(jnp.mean(gradient**2, axis=(1, 2, 3), keepdims=True))
        x = x + rate * gradient / jnp.maximum(length, 1e-12)
        x = jax.vmap(lambda image, by: jnp.roll(image, -by, (0, 1)))(x, offsets)
        return jnp.clip(x, low, high)  # the range of valid pixels

    key = jax.random.key(ascent.seed)
    noise = jax.random.normal(key, (len(gates), *image_shape))
    x = jnp.clip(0.1 * noise, low, high)  # around the mean color
    before = scores(trained.variables, x)
    for number in tqdm(range(ascent.steps), "maximizing", unit="step", leave=False, disable=None):
        rate = ascent.rate * (1 - number / ascent.steps)
        x = step(trained.variables, x, jax.random.fold_in(key, number), rate)
    darkest, lightest = map(float, levels)
    pixels = darkest + (lightest - darkest) * np.asarray((x - low) / (high - low))
    if levels.dtype == np.uint8:
        pixels = np.rint(pixels)
    pixels = pixels.astype(levels.dtype)
    after = scores(trained.variables, trained.prepare(jnp.asarray(pixels)))
    return Synthesized(pixels, np.asarray(before), np.asarray(after))


def levels_of(images: Num[np.ndarray, "b h w c"]) -> Num[np.ndarray, "2"]:
    """The lowest and highest value of a pixel: of uint8 images 0 and 255, else of these images."""
    if images.dtype == np.uint8:
        return BYTES
    return np.array([images.min(), images.max()])


def _columns(trained, gates, image_shape) -> list[tuple[tuple[str, ...], int, int]]:
    """The path and the indices of each gate's relevance score in ``intermediates``."""
    names = outline(trained, image_shape).routers
    return [
        ((*names[gate.router - 1].split("/"), "relevance"), gate.input - 1, gate.output - 1)
        for gate in gates
    ]


def maxima(
    observation: Observation, gates: Sequence[GateIndex], made: Synthesized
) -> list[Maximum]:
    """Collects the images with the highest and lowest values of each gate.

    Args:
      observation: the records for b images.
      gates: the g gates.
      made: the results of gradient ascent for these gates.
    """
    found = []
    for number, gate in enumerate(gates):
        values, scores = gate.values(observation), gate.scores(observation)
        result = made.images[number], float(made.after[number])
        found.append(Maximum(gate, *extremes(values), values, *result, float(scores.max())))
    return found


def draw(
    path: str | os.PathLike,
    maxima: Sequence[Maximum],
    images: Num[np.ndarray, "b h w c"],
    kind: str = "test",
) -> None:
    """Draws a panel for each gate: test images on the left, gradient ascent on the right.

    Args:
      path: file to write.
      maxima: the result of `maxima`.
      images: the images, ``[b h w c]``.
      kind: kind of the images, for labels: "test" or "held-out".
    """
    columns = min(2, len(maxima))
    rows = -(-len(maxima) // columns)
    figure = Figure(figsize=(style.WIDTH / 2 * columns, 2.9 * rows), layout="constrained")
    panels = figure.subfigures(rows, columns, squeeze=False, hspace=0.04, wspace=0.05).flat
    for panel, maximum in zip(panels, maxima, strict=False):
        _panel(panel, maximum, images, kind)
    style.save(figure, path)


def _panel(panel: SubFigure, maximum: Maximum, images: np.ndarray, kind: str) -> None:
    gate = maximum.gate
    panel.suptitle(
        f"{gate.label}: router {gate.router}, input {gate.input} to output {gate.output}",
        fontsize=10,
    )
    grid = panel.add_gridspec(2, 2, width_ratios=(1.35, 1))
    for row, (chosen, words) in enumerate(
        ((maximum.highest, "highest"), (maximum.lowest, "lowest"))
    ):
        axes = panel.add_subplot(grid[row, 0])
        style.show(axes, style.montage(images[chosen], COLUMNS))
        first, last = maximum.values[chosen[[0, -1]]]
        axes.set_title(f"{words}: {first:.2f} to {last:.2f}", fontsize=8.5, pad=3)
    axes = panel.add_subplot(grid[:, 1])
    style.show(axes, maximum.synthesized)
    axes.set_title(
        f"gradient ascent: score {maximum.score:.2f}\n"
        f"(highest of a {kind} image: {maximum.highest_score:.2f})",
        fontsize=8.5,
        pad=3,
    )
