"""BatchNorm statistics for each of several data sets, in one network.

A network in `OwnStatistics` is called with `FromSets`: images, and the number of the data set of
each. Its BatchNorm layers (`layers.batch_norm`) then normalize every image by the statistics of its
data set; the scales and biases are shared. The running statistics are in the collection
``own_statistics``; `of_set` makes of them the ``batch_stats`` of the network for one data set,
which is called with images alone.
"""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import Array, Bool, Float, Int, PyTree

COLLECTION = "own_statistics"


class FromSets(NamedTuple):
    """Images of several data sets.

    Attributes:
      images: ``[b h w c]``.
      sets: the number of the data set of each image, ``[b]``.
    """

    images: Float[Array, "b h w c"]
    sets: Int[Array, " b"]


class Sets(NamedTuple):
    """The data sets of the images of a batch.

    Attributes:
      count: number of data sets d.
      numbers: the number of the data set of each image, ``[b]``.
    """

    count: int
    numbers: Int[Array, " b"]

    def members(self) -> Bool[Array, "d b"]:
        """Whether an image is of a data set."""
        return jnp.arange(self.count)[:, None] == self.numbers[None]


_SETS = contextvars.ContextVar("sets", default=None)


def current_sets() -> Sets | None:
    """The data sets of the images in the layers that are traced; None without `OwnStatistics`."""
    return _SETS.get()


@contextlib.contextmanager
def _of(sets: Sets) -> Iterator[None]:
    token = _SETS.set(sets)
    try:
        yield
    finally:
        _SETS.reset(token)


class OwnStatistics(nn.Module):
    """A network whose BatchNorm layers have own statistics for each data set.

    Attributes:
      network: a network that is called with ``(images, train=...)``.
      count: number of data sets.
    """

    network: nn.Module
    count: int

    def setup(self):
        nn.share_scope(self, self.network)  # adds no level to the variable tree

    def __call__(self, inputs: FromSets | Float[Array, "b h w c"], train: bool = False) -> Array:
        """The outputs of the network.

        Args:
          inputs: images of all data sets; or images alone, with the variables of `of_set`.
          train: whether to use and update the statistics as in training.
        """
        if self.is_initializing():
            inputs = FromSets(inputs, jnp.zeros(len(inputs), jnp.int32))
        if not isinstance(inputs, FromSets):
            return self.network(inputs, train=train)
        with _of(Sets(self.count, inputs.sets)):
            return self.network(inputs.images, train=train)


def of_set(variables: PyTree, number: int) -> PyTree:
    """The variables of a network for one data set.

    Args:
      variables: the variables of an `OwnStatistics`, or of any other network.
      number: the number of the data set.

    Returns:
      The variables with the statistics of this data set as ``batch_stats``; without own statistics
      they are unchanged.
    """
    if COLLECTION not in variables:
        return variables
    kept = {name: tree for name, tree in variables.items() if name != COLLECTION}
    own = jax.tree.map(lambda leaf: leaf[..., number, :], variables[COLLECTION])
    flat = traverse_util.flatten_dict({"batch_stats": own})
    flat |= traverse_util.flatten_dict({"batch_stats": kept.get("batch_stats", {})})
    return kept | traverse_util.unflatten_dict(flat)
