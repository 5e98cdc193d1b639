"""The training state: parameters, statistics, optimizer state, step and random key."""

from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Key, PyTree, UInt32

from multipath_jax.errors import UserError

# Collections that a network writes in every call and that are not part of the state.
RECORDS = ("intermediates", "losses")

# Numbers of the random streams, which are folded into the key of a run.
INIT, ORDER, AUGMENT, GATES, MIX = range(5)


class TrainState(flax.struct.PyTreeNode):
    """The state of training.

    Attributes:
      step: number of steps taken, int32 ``[]``; it determines the position in the data and all
        random keys.
      params: the network's parameters.
      collections: its other collections by name, such as ``batch_stats``, except `RECORDS`.
      opt_state: the optimizer state.
      rng: raw data of the run's random key, which is constant: streams and steps are folded in.
      average: the moving average of the variables; None if it is not used.
    """

    step: PyTree
    params: PyTree
    collections: PyTree
    opt_state: PyTree
    rng: PyTree
    average: PyTree = None

    @property
    def variables(self) -> dict[str, PyTree]:
        """The variables for ``model.apply``."""
        return {"params": self.params, **self.collections}

    def with_variables(self, variables: dict[str, PyTree]) -> "TrainState":
        """A copy with other variables."""
        collections = {name: tree for name, tree in variables.items() if name != "params"}
        return self.replace(params=variables["params"], collections=collections)

    @property
    def weights(self) -> dict[str, PyTree]:
        """The variables to evaluate: their moving average, if it is used."""
        return self.variables if self.average is None else self.average

    def step_key(self, number: int) -> Key[Array, ""]:
        """The key of a random stream for the next step."""
        return jax.random.fold_in(stream(self.rng, number), self.step)


def stream(rng: UInt32[Array, "..."], number: int) -> Key[Array, ""]:
    """The key of a random stream, from the raw data of the run's key."""
    return jax.random.fold_in(jax.random.wrap_key_data(rng), number)


def create_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, int, int],
    seed: int | UInt32[Array, ""],
    averaged: bool = False,
) -> TrainState:
    """Initializes the training state.

    Args:
      model: the network.
      optimizer: an optax transformation.
      image_shape: height, width and channels.
      seed: seed of the run's random key.
      averaged: whether to keep a moving average of the variables; it starts at zero.

    Raises:
      UserError: the state of the optimizer has a random key.
    """
    key = jax.random.key(seed)
    images = jnp.zeros((1, *image_shape))
    variables = model.init(jax.random.fold_in(key, INIT), images, train=False)
    variables = dict(nn.meta.unbox(variables))  # of `nn.with_partitioning`
    for name in RECORDS:
        variables.pop(name, None)
    params = variables.pop("params")
    opt_state = optimizer.init(params)
    if any(map(_is_key, jax.tree.leaves(opt_state))):
        raise UserError(
            "the state of the optimizer has a random key, which checkpoints do not support; use an "
            "optimizer without noise"
        )
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        collections=variables,
        opt_state=opt_state,
        rng=jax.random.key_data(key),
    )
    average = jax.tree.map(jnp.zeros_like, state.variables) if averaged else None
    return state.replace(average=average)


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def moving_average(state: TrainState, decay: float) -> PyTree:
    """Updates the moving average of the variables after a step.

    BatchNorm's statistics are averaged too, to match the averaged weights. In step n the decay is
    min(decay, (n - 1) / (n + 8)): it ramps up, which discounts the initialization.

    Args:
      state: the state after the step, with the previous average.
      decay: the largest decay.

    Returns:
      The new average.
    """
    share = jnp.maximum(1 - decay, 9 / (state.step + 8))

    def average(new: Array, old: Array) -> Array:
        """Integers, such as counters and keys, are copied."""
        inexact = jnp.issubdtype(new.dtype, jnp.inexact)
        return optax.incremental_update(new, old, share) if inexact else new

    return jax.tree.map(average, state.variables, state.average)


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Whether all floating-point values in a tree are finite."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()
