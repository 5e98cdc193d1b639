"""How a discrete router chooses, and how it learns to: D1, D2 and D7 to D9, with their state.

The state is the collection ``routing``, which training updates as it does ``batch_stats``, without
a gradient: ``bias [n]`` (D8), ``step``, the calls in training so far, and ``soft``, whether the
router is still a soft one.
"""

import dataclasses
import math
from typing import get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from multipath_jax import routing
from multipath_jax.layers import spread
from multipath_jax.layers.paths import describe

COLLECTION = "routing"
ESTIMATORS = ("none", "straight_through", "gumbel")


@dataclasses.dataclass(frozen=True)
class Choice:
    """The options of a discrete router beside k.

    Attributes:
      kept: what the chosen gates become (D2): ``"renormalized"`` or ``"factor"``.
      estimator: of the choice's gradient (D7): ``"none"``, that of the chosen gates as they are;
        ``"straight_through"``; ``"gumbel"``, straight through a sample, which needs a random stream
        ``gates`` or ``params`` in training.
      temperature: T of either.
      last_temperature: what T falls to, exponentially, over ``cooling_steps``.
      cooling_steps: calls in training; 0: T stays.
      soft_steps: calls in training in which the router is the paper's, before it chooses.
      bias_rate: u of D8, by which the bias moves against the load; 0: no bias.
      load_entropy: u_1 of D9, against outputs that are wanted less than others.
      gate_entropy: u_2 of D9, against undecided gates.
    """

    kept: str = "renormalized"
    estimator: str = "straight_through"
    temperature: float = 1.0
    last_temperature: float = 1.0
    cooling_steps: int = 0
    soft_steps: int = 0
    bias_rate: float = 0.01
    load_entropy: float = 0.0
    gate_entropy: float = 0.0

    def __post_init__(self):
        """Raises ValueError for an option that is none of those that there are."""
        for name, names in (("kept", get_args(routing.Kept)), ("estimator", ESTIMATORS)):
            if getattr(self, name) not in names:
                raise ValueError(f"{name}={getattr(self, name)!r} is none of {', '.join(names)}")
        for name in ("temperature", "last_temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be more than 0")
        for name in ("cooling_steps", "soft_steps", "bias_rate", "load_entropy", "gate_entropy"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be 0 or more")

    def temperature_at(self, step: Int[Array, ""]) -> Float[Array, ""] | float:
        """T after so many calls in training."""
        if not self.cooling_steps:
            return self.temperature
        passed = jnp.minimum(step.astype(jnp.float32) / self.cooling_steps, 1.0)
        return self.temperature * (self.last_temperature / self.temperature) ** passed


class Chooser(nn.Module):
    """Chooses k outputs for every active input.

    Attributes:
      k: how many.
      choice: how.
    """

    k: int
    choice: Choice = Choice()

    @nn.compact
    def __call__(
        self, relevance: Float[Array, "m b n"], active: Bool[Array, "m b"], train: bool
    ) -> tuple[Float[Array, "m b n"], Bool[Array, "m b n"]]:
        """The gates of the active inputs (D3), and which outputs they chose.

        Raises:
          ValueError: k is not within 1 and n; names the router.
        """
        n = relevance.shape[-1]
        if not 1 <= self.k <= n:
            raise ValueError(
                f"{describe(self)}: needs 1 <= k <= {n}, the number of outputs, got k={self.k}"
            )
        how, dtype = self.choice, relevance.dtype
        bias = self.variable(COLLECTION, "bias", jnp.zeros, relevance.shape[-1:], jnp.float32)
        step = self.variable(COLLECTION, "step", jnp.zeros, (), jnp.int32)
        soft = self.variable(COLLECTION, "soft", lambda: jnp.asarray(how.soft_steps > 0))
        training = train and not self.is_initializing()
        is_soft = step.value < how.soft_steps if training else soft.value
        noisy = relevance
        if training and how.estimator == "gumbel":
            noise = jax.random.gumbel(self.make_rng("gates"), relevance.shape, dtype)
            noisy = relevance + jnp.where(is_soft, 0, noise)
        scores = jax.lax.stop_gradient(noisy) + jnp.expand_dims(bias.value, (0, 1)).astype(dtype)
        preferred = routing.choose(scores, self.k)
        chosen = (preferred | is_soft) & jnp.expand_dims(active, -1)
        # An inactive input chooses as well, but for nothing: its gates would else be no numbers.
        gates = routing.remaining_gates(relevance, preferred | is_soft, how.kept)
        if how.estimator != "none":
            temperature = jnp.where(is_soft, 1.0, how.temperature_at(step.value)).astype(dtype)
            gates = routing.straight_through(gates, jax.nn.softmax(noisy / temperature))
        if training:
            self._balance(relevance, active)
            load = routing.load(preferred, active, spread.all_axes())
            bias.value = routing.moved_against(load, bias.value, how.bias_rate)
            step.value += 1
            soft.value = step.value < how.soft_steps
        return routing.of_active(gates, active), chosen

    def _balance(self, relevance, active) -> None:
        """Records the terms of D9 that have a weight."""
        how = self.choice
        if how.load_entropy or how.gate_entropy:
            wanted, undecided = routing.entropies(jax.nn.softmax(relevance), active)
            loss = how.load_entropy * (1 - wanted) + how.gate_entropy * undecided
            self.sow("losses", "balance", loss)
