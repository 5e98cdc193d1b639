"""Section 7.2, Fig. 9: what opens a gate: the images that do, those that do not, and a made-up one.

The made-up image is found by gradient ascent on the gate's relevance score, before the softmax,
with the network frozen, as Simonyan et al. [61] do for classes: from noise, with an L2 penalty,
and shifted by a few pixels at random before every step, lest it become a pattern of single pixels.
"""

import dataclasses
import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Float, Int, UInt8
from matplotlib.figure import Figure, SubFigure
from tqdm import tqdm

from multipath_jax.figures import style
from multipath_jax.figures.selectors import GateIndex
from multipath_jax.gates import Observation, Trained, outline

SHOWN = 10  # images of either kind
COLUMNS = 5


@dataclasses.dataclass(frozen=True)
class Ascent:
    """How an image is made.

    Attributes:
      steps: of gradient ascent.
      rate: of the first step, in units of the input's deviation: what a pixel changes by on
        average. It falls to nothing in a straight line.
      penalty: of the mean square of the input.
      shift: the largest random shift, as a share of the image's side; whole pixels.
      seed: of the noise that it begins as and of the shifts.
    """

    steps: int = 256
    rate: float = 0.05
    penalty: float = 0.02
    shift: float = 1 / 16
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Synthesized:
    """An image made for every gate.

    Attributes:
      images: as images are stored.
      before, after: the relevance scores of the noise and of ``images``.
    """

    images: UInt8[np.ndarray, "g h w c"]
    before: Float[np.ndarray, " g"]
    after: Float[np.ndarray, " g"]


@dataclasses.dataclass(frozen=True)
class Maximum:
    """What opens one gate.

    Attributes:
      gate: which.
      highest, lowest: numbers of the images by whom it is the most and the least open, in order.
      values: its activation by every image.
      synthesized: the made-up image.
      score: the relevance score of the made-up image.
      highest_score: the highest relevance score of the images.
    """

    gate: GateIndex
    highest: Int[np.ndarray, " k"]
    lowest: Int[np.ndarray, " k"]
    values: Float[np.ndarray, " b"]
    synthesized: UInt8[np.ndarray, "h w c"]
    score: float
    highest_score: float


def extremes(
    values: Float[np.ndarray, " b"], count: int = SHOWN
) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"]]:
    """Numbers of the highest values, highest first, and of the lowest, lowest first."""
    order = np.argsort(values, kind="stable")
    return order[::-1][:count], order[:count]


def synthesize(
    trained: Trained,
    gates: Sequence[GateIndex],
    image_shape: tuple[int, int, int],
    ascent: Ascent = Ascent(),
) -> Synthesized:
    """Makes an image for each of the gates; all of them at once, as a batch."""
    columns = _columns(trained, gates, image_shape)
    low, high = (
        trained.prepare(jnp.full((1, *image_shape), level, jnp.uint8)) for level in (0, 255)
    )
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

        def objective(x):  # images of a batch do not meet: a sum's gradient is each one's own
            return jnp.sum(scores(variables, x) - ascent.penalty * jnp.mean(x**2, axis=(1, 2, 3)))

        gradient = jax.grad(objective)(x)
        # Scores of different gates differ in steepness by orders of magnitude; a rate does not.
        length = jnp.sqrt(jnp.mean(gradient**2, axis=(1, 2, 3), keepdims=True))
        x = x + rate * gradient / jnp.maximum(length, 1e-12)
        x = jax.vmap(lambda image, by: jnp.roll(image, -by, (0, 1)))(x, offsets)
        return jnp.clip(x, low, high)  # what is shown is what the score is of

    key = jax.random.key(ascent.seed)
    noise = jax.random.normal(key, (len(gates), *image_shape))
    x = jnp.clip(0.1 * noise, low, high)  # about the mean color
    before = scores(trained.variables, x)
    for number in tqdm(range(ascent.steps), "maximizing", unit="step", leave=False, disable=None):
        rate = ascent.rate * (1 - number / ascent.steps)
        x = step(trained.variables, x, jax.random.fold_in(key, number), rate)
    pixels = np.rint(255 * np.asarray((x - low) / (high - low))).astype(np.uint8)
    after = scores(trained.variables, trained.prepare(jnp.asarray(pixels)))
    return Synthesized(pixels, np.asarray(before), np.asarray(after))


def _columns(trained, gates, image_shape) -> list[tuple[tuple[str, ...], int, int]]:
    """Where the relevance score of every gate is recorded."""
    names = outline(trained, image_shape).routers
    return [
        ((*names[gate.router - 1].split("/"), "relevance"), gate.input - 1, gate.output - 1)
        for gate in gates
    ]


def maxima(
    observation: Observation, gates: Sequence[GateIndex], made: Synthesized
) -> list[Maximum]:
    """The extreme images of an observation and the made-up one, gate by gate."""
    found = []
    for number, gate in enumerate(gates):
        values, scores = gate.values(observation), gate.scores(observation)
        result = made.images[number], float(made.after[number])
        found.append(Maximum(gate, *extremes(values), values, *result, float(scores.max())))
    return found


def draw(
    path: str | os.PathLike,
    maxima: Sequence[Maximum],
    images: UInt8[np.ndarray, "b h w c"],
    kind: str = "test",
) -> None:
    """Draws a panel for each gate: its extreme images to the left, the made-up one to the right.

    Args:
      kind: what the images are called.
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
        ((maximum.highest, "most open"), (maximum.lowest, "least open"))
    ):
        axes = panel.add_subplot(grid[row, 0])
        style.show(axes, style.montage(images[chosen], COLUMNS))
        first, last = maximum.values[chosen[[0, -1]]]
        axes.set_title(f"{words}: {first:.2f} to {last:.2f}", fontsize=8.5, pad=3)
    axes = panel.add_subplot(grid[:, 1])
    style.show(axes, maximum.synthesized)
    axes.set_title(
        f"made to open it: score {maximum.score:.2f}\n"
        f"(the best {kind} image {maximum.highest_score:.2f})",
        fontsize=8.5,
        pad=3,
    )
