"""Data resident on the devices: transferred once, then sliced into batches inside the step.

Shapes: `n` examples, `k` batches, `b` batch, `h w` height and width, `c` channels.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int, Int32, Num

from multipath_jax.data.datasets import Split
from multipath_jax.errors import UserError


class ResidentData(NamedTuple):
    """One split on the devices.

    Attributes:
      images: `[n h w c]`.
      labels: int32 `[n]`.
    """

    images: Num[Array, "n h w c"]
    labels: Int32[Array, " n"]


class EvalBatches(NamedTuple):
    """A whole split in batches of one size.

    Attributes:
      images: `[k b h w c]`.
      labels: int32 `[k b]`.
      mask: `[k b]`, False for the padding of the last batch.
    """

    images: Num[Array, "k b h w c"]
    labels: Int32[Array, "k b"]
    mask: Bool[Array, "k b"]


def place(split: Split, sharding: jax.sharding.Sharding) -> ResidentData:
    """Transfers a split to the devices.

    Args:
      split: the split.
      sharding: usually replicated, since a batch takes examples from the whole split.

    Returns:
      The split on the devices.
    """
    return ResidentData(*jax.device_put((split.images, split.labels), sharding))


def batches_per_epoch(n: int, batch_size: int) -> int:
    """The number of whole batches in `n` examples. Raises `UserError` if there is none."""
    if not 1 <= batch_size <= n:
        raise UserError(
            f"a batch of {batch_size} is larger than the {n} training examples; "
            f"choose a batch size from 1 to {n}"
        )
    return n // batch_size


def batch_at(
    data: ResidentData, order: Int32[Array, " n"], index: int | Int[Array, ""], batch_size: int
) -> tuple[Num[Array, "b h w c"], Int32[Array, " b"]]:
    """One batch of an epoch.

    Args:
      data: the training split.
      order: the order of the epoch, `[n]` (`epoch_order`).
      index: number of the batch in the epoch, from 0 to `batches_per_epoch(n, batch_size) - 1`;
        the examples after the last whole batch are not used in this epoch.
      batch_size: number of examples b.

    Returns:
      Images `[b h w c]` and labels `[b]`.
    """
    chosen = lax.dynamic_slice_in_dim(order, index * batch_size, batch_size)
    # The indices are a permutation, so the gathers need no bounds checks.
    images, labels = (array.at[chosen].get(mode="promise_in_bounds") for array in data)
    return images, labels


def eval_batches(data: ResidentData, batch_size: int) -> EvalBatches:
    """Divides a whole split, in order, into `k = ceil(n / b)` batches, for one scan.

    The last batch is padded with zeros, for which `mask` is False, so that masked means are exact
    for any batch size.

    Args:
      data: the split.
      batch_size: number of examples b per batch.

    Returns:
      The batches.
    """
    n = len(data.labels)
    mask = jnp.ones(n, bool)

    def batched(array):
        padding = [(0, -n % batch_size)] + [(0, 0)] * (array.ndim - 1)
        return jnp.pad(array, padding).reshape(-1, batch_size, *array.shape[1:])

    return EvalBatches(*map(batched, (data.images, data.labels, mask)))
