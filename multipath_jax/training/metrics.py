"""Training metrics, accumulated on the device: loss, error, routing, first non-finite step."""

import math

import flax
import jax
import jax.numpy as jnp
from clu import metrics
from jaxtyping import Array, Bool, Float, PyTree

from multipath_jax.routing import load


@flax.struct.dataclass
class Means(metrics.Metric):
    """Means over steps of named scalars.

    Attributes:
      totals: sums over steps, float32, by name.
      count: number of steps, int32.
    """

    # Typed as trees, since shapes and shardings are stored here too.
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
    """The first step whose loss was not finite.

    Attributes:
      seen: whether there was one, bool.
      step: the number of the step, counted from 1, int32.
    """

    seen: PyTree
    step: PyTree

    @classmethod
    def from_model_output(cls, *, loss: Array, step: Array, **_) -> "FirstFault":
        return cls(~jnp.isfinite(loss), step)

    def merge(self, other: "FirstFault") -> "FirstFault":
        step = jnp.where(self.seen, self.step, other.step)
        return FirstFault(self.seen | other.seen, step)

    def compute(self) -> int:
        """The step, or 0 if there was none."""
        return int(self.step) if self.seen else 0


@flax.struct.dataclass
class TrainMetrics(metrics.Collection):
    """Means over the steps since the last log.

    Attributes:
      loss: mean loss, with auxiliary losses.
      error: mean top-1 error, from 0 to 1.
      routing: mean routing statistics (`routing_statistics`).
      fault: the first step with a non-finite loss.
    """

    loss: metrics.Average.from_output("loss")
    error: metrics.Average.from_output("wrong")
    routing: Means
    fault: FirstFault


def zeros_like(shapes: PyTree) -> PyTree:
    """Zeros with the shapes of a metrics collection: the neutral element of its ``merge``."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def routing_statistics(intermediates: PyTree) -> dict[str, Float[Array, ""]]:
    """Entropy and shares of every router that has sown its ``gates [m b n]`` (Eq. 3).

    For a router at ``a/router_2/gates``: ``a/router_2/entropy``, the mean entropy of its gates
    divided by log n, that of uniform gates (0 if n = 1); and ``a/router_2/share_j``, j = 1..n, the
    mean gate of output path j. For a discrete router both are means over the active inputs, and
    ``a/router_2/load_j`` is the share of their choices of output path j (D8). A router inside of
    `Parallel` or `nn.scan` has more leading axes, over which the means are taken too.

    Args:
      intermediates: the collection ``intermediates``.

    Returns:
      Scalars by name.
    """
    statistics = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(intermediates)[0]:
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        if names[-1] == "gates":
            statistics |= _router_statistics("/".join(names[:-1]), _three_axes(leaf))
    for path, leaf in jax.tree_util.tree_flatten_with_path(intermediates)[0]:
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        if names[-1] == "chosen":
            statistics |= _of_active("/".join(names[:-1]), _three_axes(leaf), statistics)
    return statistics


def _three_axes(record: Array) -> Array:
    """Merges the leading axes of a record ``[... m b n]``."""
    return record.reshape(-1, *record.shape[-2:])


def _of_active(
    name: str, chosen: Bool[Array, "m b n"], statistics: dict[str, Float[Array, ""]]
) -> dict[str, Float[Array, ""]]:
    """The statistics of a discrete router: means over active inputs, and the loads."""
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
