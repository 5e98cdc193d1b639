"""Gradient accumulation over micro-batches."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree


class Pass(NamedTuple):
    """The auxiliary outputs of a gradient function.

    Attributes:
      collections: the network's updated collections, such as BatchNorm's statistics.
      loss: mean loss over the examples, with auxiliary losses.
      wrong: whether each example was misclassified, ``[b]``; for mixed labels, from 0 to 1.
      routing: routing statistics by name.
    """

    collections: PyTree
    loss: Float[Array, ""]
    wrong: Bool[Array, " b"] | Float[Array, " b"]
    routing: dict[str, Array]


# (params, collections, images, labels, key) -> (gradient, pass)
Gradient = Callable[..., tuple[PyTree, Pass]]


def accumulated(gradient: Gradient, count: int, unroll: bool) -> Gradient:
    """Makes a gradient function process a batch in ``count`` micro-batches.

    Gradient, loss and routing are means over the micro-batches. BatchNorm normalizes each of them
    by its own statistics and updates its running statistics once per micro-batch.

    Args:
      gradient: the gradient function of a batch.
      count: number of micro-batches.
      unroll: whether to unroll the loop: for CPUs, where gradients of convolutions are slow inside
        loops (see `step.Runner`). A loop only needs the memory of one micro-batch.

    Returns:
      A function like ``gradient``.
    """
    if count == 1:
        return gradient

    def mean_gradient(params, collections, images, labels, key):
        def add(carry, part):
            total, collections = carry
            grads, found = gradient(params, collections, *part)
            return (jax.tree.map(jnp.add, total, grads), found.collections), found[1:]

        examples = jax.tree.map(lambda array: split(array, count), (images, labels))
        parts = *examples, jax.random.split(key, count)
        start = jax.tree.map(jnp.zeros_like, params), collections
        (total, collections), found = jax.lax.scan(add, start, parts, unroll=unroll)
        losses, wrong, routing = found
        routing = {name: values.mean() for name, values in routing.items()}
        grads = jax.tree.map(lambda leaf: leaf / count, total)
        return grads, Pass(collections, losses.mean(), wrong.reshape(-1), routing)

    return mean_gradient


def split(array: Array, count: int) -> Array:
    """Splits a batch into micro-batches, ``[b ...] -> [count b/count ...]``.

    A micro-batch has every count-th example, so that each device has a part of every micro-batch
    and the split needs no communication.
    """
    return array.reshape(-1, count, *array.shape[1:]).swapaxes(0, 1)
