"""Ablation of the data-dependence of the gates: the error with gates that are replaced.

The gates of one router, or of all, are replaced by their mean over all images (learned, but the
same for every image), by uniform gates 1/n (no routing), or by those of another image (with the
same distribution, but independent of the image). The parameters of the network are unchanged.
"""

import dataclasses
import os
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Num
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from tqdm import tqdm

from multipath_jax.figures import style
from multipath_jax.gates import BATCH_SIZE, Observation, Trained, batches
from multipath_jax.utils.tables import aligned

KINDS = {"mean": "mean gates", "uniform": "uniform gates", "shuffled": "another image's gates"}
TICKS = (0.5, 1, 2, 5, 10, 20, 50, 100)

Gates = list[Float[np.ndarray, "b _ _"]]  # [b m n] of every router


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The error with some gates replaced.

    Attributes:
      kind: a key of `KINDS`, or ``"none"`` for the original network.
      router: number of the router, from one; None for all routers (or none, for the original).
      error: in percent.
      change: change of the error in percentage points.
      deviation: standard error of ``change``, from its distribution over images.
      loss: mean cross-entropy.
    """

    kind: str
    router: int | None
    error: float
    change: float
    deviation: float
    loss: float


def ablate(
    trained: Trained,
    images: Num[np.ndarray, "b h w c"],
    labels: Int[np.ndarray, " b"],
    observation: Observation,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    singly: bool = True,
) -> list[Outcome]:
    """Computes the errors with replaced gates, for each router and for all together.

    Args:
      trained: the network.
      images: images as `prepare` takes them, ``[b h w c]``.
      labels: ``[b]``.
      observation: the records of the network for these images.
      seed: seed of the assignment of other images' gates.
      batch_size: number of images per batch.
      singly: whether to replace the gates of each router, too, and not only those of all.

    Returns:
      The outcomes, the first of the original network.
    """
    network = _Network(trained, observation)
    own = [np.moveaxis(router.gates, 0, 1) for router in observation.routers]
    donors = others(len(images), seed)
    given = {
        "mean": [np.broadcast_to(g.mean(axis=0), g.shape) for g in own],
        "uniform": [np.full_like(g, 1 / g.shape[-1]) for g in own],
        "shuffled": [g[donors] for g in own],
    }
    before = _judged(observation.logits, labels)
    outcomes = [_outcome("none", None, before, before)]
    routers = (*range(1, len(own) + 1), None) if singly else (None,)
    runs = [(kind, number) for kind in KINDS for number in routers]
    for kind, number in tqdm(runs, "ablation", unit="run", leave=False, disable=None):
        replaced = np.array([number in (None, at) for at in range(1, len(own) + 1)])
        logits = network.logits(images, given[kind], replaced, batch_size)
        outcomes.append(_outcome(kind, number, before, _judged(logits, labels)))
    return outcomes


def others(count: int, seed: int) -> Int[np.ndarray, " b"]:
    """Assigns another image to every image: a random cyclic permutation ``[b]``."""
    order = np.random.default_rng(seed).permutation(count)
    partner = np.empty(count, int)
    partner[order] = np.roll(order, 1)
    return partner


class _Network:
    """The network with gates as inputs, compiled once for all ablations."""

    def __init__(self, trained: Trained, observation: Observation):
        self._trained = trained
        self._names = [router.name for router in observation.routers]
        self._compiled = jax.jit(self._forward)

    def logits(
        self,
        images: Num[np.ndarray, "b h w c"],
        given: Gates,
        replaced: Bool[np.ndarray, " routers"],
        batch_size: int,
    ) -> Float[np.ndarray, "b classes"]:
        """The logits with the given gates at the routers marked in ``replaced``."""
        found = [
            np.asarray(self._compiled(self._trained.variables, *batch, replaced))
            for batch in batches((images, given), batch_size, "images")
        ]
        return np.concatenate(found)[: len(images)]

    def _forward(self, variables, images, given, replaced):
        def replace(following, args, kwargs, context):
            router, name = context.module, "/".join(context.module.path)
            if context.method_name != "route" or name not in self._names:
                return following(*args, **kwargs)
            at, (xs, train) = self._names.index(name), args
            gates = jnp.where(replaced[at], jnp.moveaxis(given[at], 1, 0), router.gates(xs))
            return router.mix(xs, gates, train)

        with nn.intercept_methods(replace):
            x = self._trained.prepare(images)
            return self._trained.model.apply(variables, x, train=False)


def _judged(logits, labels) -> tuple[np.ndarray, np.ndarray]:
    """Whether each image is misclassified, and its cross-entropy."""
    logs = np.asarray(jax.nn.log_softmax(logits.astype(np.float32)))
    return logs.argmax(axis=1) != labels, -logs[np.arange(len(labels)), labels]


def _outcome(kind: str, router: int | None, before, after) -> Outcome:
    wrong, losses = after
    change = 100 * (wrong.astype(float) - before[0])
    deviation = change.std() / np.sqrt(len(change))
    error, loss = 100 * wrong.mean(), losses.mean()
    return Outcome(kind, router, *map(float, (error, change.mean(), deviation, loss)))


def table(outcomes: Sequence[Outcome]) -> str:
    """The errors as a text table, with a row per router (and one for all) and a column per kind."""
    base, *rest = outcomes
    by_place = {(outcome.router, outcome.kind): outcome for outcome in rest}
    routers = list(dict.fromkeys(outcome.router for outcome in rest))
    cells = [["", *KINDS.values()]]
    for router in routers:
        name = "all" if router is None else f"router {router}"
        cells.append([name, *(_cell(by_place[router, kind]) for kind in KINDS)])
    return (
        f"error {base.error:.2f} % as trained; with other gates, in percent (and the change):\n"
        f"{aligned(cells, left=(0,))}"
    )


def _cell(outcome: Outcome) -> str:
    return f"{outcome.error:.2f} ({outcome.change:+.2f} ± {outcome.deviation:.2f})"


def draw(path: str | os.PathLike, outcomes: Sequence[Outcome], images: str = "test") -> None:
    """Draws the changes of the error with their standard errors.

    Args:
      path: file to write.
      outcomes: the results of `ablate`.
      images: kind of the images, for labels: "test" or "held-out".
    """
    base, *rest = outcomes
    places = list(dict.fromkeys(outcome.router for outcome in rest))
    figure = Figure(figsize=(min(style.WIDTH, 2.4 + 1.1 * len(places)), 4), layout="constrained")
    axes = figure.subplots()
    as_trained = f"as trained, {base.error:.2f} %"
    axes.axhline(0, color=style.GREY, ls="--", lw=1, label=as_trained)
    for number, (kind, words) in enumerate(KINDS.items()):
        chosen = [outcome for outcome in rest if outcome.kind == kind]
        axes.errorbar(
            [places.index(outcome.router) + 0.2 * (number - 1) for outcome in chosen],
            [outcome.change for outcome in chosen],
            [outcome.deviation for outcome in chosen],
            fmt=style.MARKERS[number],
            color=style.COLORS[number],
            capsize=3,
            label=words,
        )
    # Logarithmic, since changes range from fractions of a percent to almost 100; linear around 0.
    axes.set_yscale("symlog", linthresh=1, linscale=0.5)
    axes.yaxis.set_major_locator(FixedLocator([*(-t for t in TICKS), 0, *TICKS]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda change, _: f"{change:+g}" if change else "0")
    lows, highs = ([sign * o.change + o.deviation for o in rest] for sign in (-1, 1))
    axes.set_ylim(-1.3 * max(0.4, *lows), 1.3 * max(0.4, *highs))
    axes.set_ylabel(f"change of the {images} error (percentage points)")
    names = ("all routers" if place is None else f"router {place}" for place in places)
    axes.set_xticks(range(len(places)), names)
    axes.grid(axis="y", color="#EEEEEE", zorder=0)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=4, fontsize=9, frameon=False)
    style.save(figure, path)
