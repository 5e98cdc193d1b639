"""All that a run needs to go on: parameters, statistics, momentum, step and key."""

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Key, PyTree, UInt32

# Collections that a network writes anew in every call; nothing of them is kept.
RECORDS = ("intermediates", "losses")

# The streams of randomness that a run's key is split into.
INIT, ORDER, AUGMENT, GATES, MIX = range(5)


class TrainState(flax.struct.PyTreeNode):
    """The state of training.

    Attributes:
      step: int32 ``[]``, the steps taken; the data's position and every random key follow from it.
      params: the network's parameters.
      collections: its other collections by name, such as ``batch_stats``; but for `RECORDS`.
      opt_state: the optimizer's, momentum included.
      rng: the raw data of the run's key, never advanced: streams are folded into it.
      average: the moving average of the variables, if one is kept (see `moving_average`).
    """

    step: PyTree
    params: PyTree
    collections: PyTree
    opt_state: PyTree
    rng: PyTree
    average: PyTree = None

    @property
    def variables(self) -> dict[str, PyTree]:
        """What ``model.apply`` takes."""
        return {"params": self.params, **self.collections}

    def with_variables(self, variables: dict[str, PyTree]) -> "TrainState":
        """The same with other variables."""
        collections = {name: tree for name, tree in variables.items() if name != "params"}
        return self.replace(params=variables["params"], collections=collections)

    @property
    def weights(self) -> dict[str, PyTree]:
        """What is evaluated: the variables, or their average if one is kept."""
        return self.variables if self.average is None else self.average

    def step_key(self, number: int) -> Key[Array, ""]:
        """The key of one stream of randomness for the coming step."""
        return jax.random.fold_in(stream(self.rng, number), self.step)


def stream(rng: UInt32[Array, "..."], number: int) -> Key[Array, ""]:
    """The key of one stream of randomness of a run, from the raw data of the run's key."""
    return jax.random.fold_in(jax.random.wrap_key_data(rng), number)


def create_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, int, int],
    seed: int | UInt32[Array, ""],
    averaged: bool = False,
) -> TrainState:
    """A fresh state, for images of that height, width and number of channels.

    Args:
      averaged: whether it keeps a moving average of the variables, zero so far.
    """
    key = jax.random.key(seed)
    images = jnp.zeros((1, *image_shape))
    variables = dict(model.init(jax.random.fold_in(key, INIT), images, train=False))
    for name in RECORDS:
        variables.pop(name, None)
    params = variables.pop("params")
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        collections=variables,
        opt_state=optimizer.init(params),
        rng=jax.random.key_data(key),
    )
    average = jax.tree.map(jnp.zeros_like, state.variables) if averaged else None
    return state.replace(average=average)


def moving_average(state: TrainState, decay: float) -> PyTree:
    """The average of the variables after one more step, of which ``state`` has all the rest.

    Of BatchNorm's statistics too: those of the last few batches are of other weights than the
    average's. The decay of the n-th step is (n - 1) / (n + 8) where that is less than ``decay``, so
    that what came first, the random start above all, is discounted early on.
    """
    share = jnp.maximum(1 - decay, 9 / (state.step + 8))

    def average(new: Array, old: Array) -> Array:
        """Counters and keys are taken over as they are."""
        inexact = jnp.issubdtype(new.dtype, jnp.inexact)
        return optax.incremental_update(new, old, share) if inexact else new

    return jax.tree.map(average, state.variables, state.average)


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Whether every number in the tree is finite."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()
