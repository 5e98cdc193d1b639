"""What is measured on the device: losses, errors, routing, and the first step that went wrong."""

import math

import flax
import jax
import jax.numpy as jnp
from clu import metrics
from jaxtyping import Array, Bool, Float, PyTree

from multipath_jax.routing import load


@flax.struct.dataclass
class Means(metrics.Metric):
    """Means over steps of named scalars, the names known only to the network."""

    # A dict of float32, and an int32; as trees, since shapes and shardings pass through here too.
    totals: PyTree
    count: PyTree

    @classmethod
    def from_model_output(cls, *, routing: dict, **_) -> "Means":
        return cls(routing, jnp.ones((), jnp.int32))

    def merge(self, other: "Means") -> "Means":
        totals = jax.tree.map(jnp.add, self.totals, other.totals)
        return Means(totals, self.count + other.count)

    def compute(self) -> dict:
        return {name: total / self.count for name, total in self.totals.items()}


@flax.struct.dataclass
class FirstFault(metrics.Metric):
    """The first step whose loss was not finite. All zeros: none so far."""

    seen: PyTree  # bool
    step: PyTree  # int32, the number of the step, counted from one

    @classmethod
    def from_model_output(cls, *, loss: Array, step: Array, **_) -> "FirstFault":
        return cls(~jnp.isfinite(loss), step)

    def merge(self, other: "FirstFault") -> "FirstFault":
        step = jnp.where(self.seen, self.step, other.step)
        return FirstFault(self.seen | other.seen, step)

    def compute(self) -> int:
        """The step, or 0."""
        return int(self.step) if self.seen else 0


@flax.struct.dataclass
class TrainMetrics(metrics.Collection):
    """Of the steps since the last log: mean loss (all terms) and error, mean routing statistics."""

    loss: metrics.Average.from_output("loss")
    error: metrics.Average.from_output("wrong")
    routing: Means
    fault: FirstFault


def zeros_like(shapes: PyTree) -> PyTree:
    """The neutral element of a collection's ``merge``, from the shapes of any of its values."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def routing_statistics(intermediates: PyTree) -> dict[str, Float[Array, ""]]:
    """Entropy and shares of every router that recorded its ``gates [m b n]`` (Eq. 3).

    For a router at ``a/router_2/gates``: ``a/router_2/entropy``, the mean entropy of its gates over
    that of even routing, log n (0 when n = 1); and ``a/router_2/share_j``, j = 1..n, the mean
    probability with which an input path is sent to output path j. Of a discrete router both are
    over the active inputs, and ``a/router_2/load_j`` is the share of their choices that fell on
    output path j (D8).
    """
    statistics = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(intermediates)[0]:
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        if names[-1] == "gates":
            statistics |= _router_statistics("/".join(names[:-1]), leaf)
    for path, leaf in jax.tree_util.tree_flatten_with_path(intermediates)[0]:
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        if names[-1] == "chosen":
            statistics |= _of_active("/".join(names[:-1]), leaf, statistics)
    return statistics


def _of_active(
    name: str, chosen: Bool[Array, "m b n"], statistics: dict[str, Float[Array, ""]]
) -> dict[str, Float[Array, ""]]:
    """A router's statistics, which the zeros of inactive inputs entered, without those."""
    active = chosen.any(-1)
    own = {key: value for key, value in statistics.items() if key.rpartition("/")[0] == name}
    loads = load(chosen, active)
    return {key: value / active.mean() for key, value in own.items()} | {
        f"{name}/load_{j + 1}": loads[j] for j in range(len(loads))
    }


def _router_statistics(name: str, gates: Float[Array, "m b n"]) -> dict[str, Float[Array, ""]]:
    n = gates.shape[-1]
    entropy = jax.scipy.special.entr(gates).sum(-1).mean() / (math.log(n) or 1.0)
    shares = gates.mean((0, 1))
    named = {f"{name}/share_{j + 1}": shares[j] for j in range(n)}
    return {f"{name}/entropy": entropy, **named}
