"""The choice of outputs in discrete routers, and its training: D1, D2 and D7 to D9.

The state of a router is in the collection ``routing``, which training updates without a gradient,
like ``batch_stats``: ``bias [n]`` (D8); ``step``, the number of calls in training; and ``soft``,
whether the router is in its first steps, in which it is soft.
"""

import dataclasses
import math
import numbers
from typing import get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import Array, Bool, Float, Int, PyTree

from multipath_jax import routing
from multipath_jax.layers import sharding
from multipath_jax.layers.paths import describe

COLLECTION = "routing"
COUNTERS = ("step", "soft")  # the part of the state that is about one training
ESTIMATORS = ("none", "straight_through", "gumbel")


@dataclasses.dataclass(frozen=True)
class Choice:
    """The options of a discrete router besides k.

    Attributes:
      kept: the gates of the chosen outputs (D2): ``"renormalized"`` or ``"factor"``.
      estimator: the gradient of the gates (D7): ``"none"``, that of the chosen gates only;
        ``"straight_through"``; or ``"gumbel"``, straight-through with samples, which needs the
        random stream ``gates`` or ``params`` in training.
      temperature: the initial temperature T of the estimators.
      last_temperature: the final temperature, to which T decays exponentially.
      cooling_steps: number of calls in training over which T decays; 0: T is constant.
      soft_steps: number of calls in training at the start in which the router is soft.
      bias_rate: the step size u of the bias (D8); 0: no bias.
      load_entropy: the weight u_1 in D9, of the entropy of the mean gates.
      gate_entropy: the weight u_2 in D9, of the mean entropy of the gates.
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
        """Checks the options. Raises ValueError if one has an invalid value."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            kind = {int: numbers.Integral, float: numbers.Real}.get(field.type, object)
            if isinstance(value, bool) or not isinstance(value, kind):
                raise ValueError(f"{field.name}={value!r}: must be of type {field.type.__name__}")
        for name, names in (("kept", get_args(routing.Kept)), ("estimator", ESTIMATORS)):
            if getattr(self, name) not in names:
                raise ValueError(
                    f"{name}={getattr(self, name)!r}: must be one of {', '.join(names)}"
                )
        for name in ("temperature", "last_temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)}: must be positive")
        for name in ("cooling_steps", "soft_steps", "bias_rate", "load_entropy", "gate_entropy"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 0")
        if not self.cooling_steps and self.last_temperature not in (1.0, self.temperature):
            raise ValueError(
                f"last_temperature={self.last_temperature} needs cooling_steps, the number of "
                "steps to it"
            )

    def temperature_at(self, step: Int[Array, ""]) -> Float[Array, ""] | float:
        """The temperature T after a number of calls in training.

        Args:
          step: the number of calls.
        """
        if not self.cooling_steps:
            return self.temperature
        passed = jnp.minimum(step.astype(jnp.float32) / self.cooling_steps, 1.0)
        return self.temperature * (self.last_temperature / self.temperature) ** passed


def with_counters_of(fresh: PyTree, variables: PyTree) -> PyTree:
    """The variables of a network with the counters (`COUNTERS`) of its discrete routers replaced.

    Args:
      fresh: the variables with the counters.
      variables: all other variables.
    """
    own = traverse_util.flatten_dict(fresh)
    return traverse_util.path_aware_map(
        lambda key, value: own[key] if key[0] == COLLECTION and key[-1] in COUNTERS else value,
        variables,
    )


def is_soft(variables: PyTree) -> bool:
    """Whether a discrete router is in its first steps, in which it is soft.

    Args:
      variables: the variables of a network.
    """
    state = traverse_util.flatten_dict(variables.get(COLLECTION, {}))
    return any(bool(value.any()) for key, value in state.items() if key[-1] == "soft")


class Chooser(nn.Module):
    """Chooses k outputs for every active input.

    Attributes:
      k: the number of outputs.
      choice: the options.
    """

    k: int
    choice: Choice = Choice()

    @nn.compact
    def __call__(
        self, relevance: Float[Array, "m b n"], active: Bool[Array, "m b"], train: bool
    ) -> tuple[Float[Array, "m b n"], Bool[Array, "m b n"]]:
        """Computes the gates of the chosen outputs (D1-D3).

        Args:
          relevance: the scores of Eq. 2, ``[m b n]``.
          active: whether an input is active for an image, ``[m b]``.
          train: whether to update the state, and to sample if the estimator is ``"gumbel"``.

        Returns:
          The gates, and whether an input chose an output, both ``[m b n]``. For inactive inputs
          they are zero and False.

        Raises:
          ValueError: k is not between 1 and n.
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
        # Inactive inputs choose as well, since a softmax over no output would be NaN.
        gates = routing.remaining_gates(relevance, preferred | is_soft, how.kept)
        if how.estimator != "none":
            temperature = jnp.where(is_soft, 1.0, how.temperature_at(step.value)).astype(dtype)
            gates = routing.straight_through(gates, jax.nn.softmax(noisy / temperature))
        if training:
            self._balance(relevance, active)
            load = routing.load(preferred, active, sharding.all_axes())
            bias.value = routing.moved_against(load, bias.value, how.bias_rate)
            step.value += 1
            soft.value = step.value < how.soft_steps
        return routing.of_active(gates, active), chosen

    def _balance(self, relevance, active) -> None:
        """Sows the terms of D9, if they have a weight, into ``losses``."""
        how = self.choice
        if how.load_entropy or how.gate_entropy:
            wanted, undecided = routing.entropies(jax.nn.softmax(relevance), active)
            loss = how.load_entropy * (1 - wanted) + how.gate_entropy * undecided
            self.sow("losses", "balance", loss)
