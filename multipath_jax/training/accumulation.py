"""Gradient accumulation: the gradient of a batch from micro-batches, one after another."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree


class Pass(NamedTuple):
    """What a pass over examples gives beside the gradient.

    Attributes:
      collections: the network's after it, such as BatchNorm's statistics.
      loss: all terms, mean over the examples.
      wrong: of every example, whether it was; of a mixed one, to what part.
      routing: means of scalars, by name.
    """

    collections: PyTree
    loss: Float[Array, ""]
    wrong: Bool[Array, " b"] | Float[Array, " b"]
    routing: dict[str, Array]


# (params, collections, images, labels, key) -> (gradient, pass)
Gradient = Callable[..., tuple[PyTree, Pass]]


def accumulated(gradient: Gradient, count: int, unroll: bool) -> Gradient:
    """The same function, but that it takes the examples in ``count`` parts of one size.

    Gradient, loss and routing are means over the parts. BatchNorm normalizes each part by
    statistics of its own, and its running statistics go from part to part.

    Args:
      unroll: leaves out the loop: for CPUs, where gradients of convolutions are slow in loops (see
        `step.Runner`). A loop needs the memory of one part.
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
    """``[b ...] -> [count b/count ...]``.

    Every count-th example goes to one part: on several devices each has its share of every part,
    and nothing has to be sent.
    """
    return array.reshape(-1, count, *array.shape[1:]).swapaxes(0, 1)
