"""A data set that lives on the device: one transfer, then batches cut inside the step.

Shapes: `n` examples, `k` batches, `b` batch, `h w` height and width, `c` channels.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int, Int32, Num, PRNGKeyArray

from multipath_jax.data.datasets import Split
from multipath_jax.errors import UserError


class ResidentData(NamedTuple):
    """One split on the device or devices."""

    images: Num[Array, "n h w c"]
    labels: Int32[Array, " n"]


class EvalBatches(NamedTuple):
    """A whole split in batches of one size; `mask` is False for the padding of the last."""

    images: Num[Array, "k b h w c"]
    labels: Int32[Array, "k b"]
    mask: Bool[Array, "k b"]


def place(split: Split, sharding: jax.sharding.Sharding) -> ResidentData:
    """Puts a split onto the device(s) as it is.

    `sharding` is usually the replicated one, since a batch takes examples from everywhere.
    """
    return ResidentData(*jax.device_put((split.images, split.labels), sharding))


def batches_per_epoch(n: int, batch_size: int) -> int:
    """The whole batches in `n` examples. Raises `UserError` where not even one fits."""
    if not 1 <= batch_size <= n:
        raise UserError(
            f"a batch of {batch_size} cannot be drawn from {n} training examples; "
            f"choose a batch size from 1 to {n}"
        )
    return n // batch_size


def epoch_order(key: PRNGKeyArray, epoch: int | Int[Array, ""], n: int) -> Int32[Array, " n"]:
    """The order of the examples in one epoch: `[n]`, a permutation fixed by the run's key.

    It depends on nothing else, so a run that resumes in mid-epoch finds the same order again. Draw
    it once an epoch, not at every step: it is a sort.
    """
    return jax.random.permutation(jax.random.fold_in(key, epoch), n).astype(jnp.int32)


def batch_at(
    data: ResidentData, order: Int32[Array, " n"], index: int | Int[Array, ""], batch_size: int
) -> tuple[Num[Array, "b h w c"], Int32[Array, " b"]]:
    """The `index`-th batch of the epoch with this order: images `[b h w c]` and labels `[b]`.

    `index` runs from 0 to `batches_per_epoch(n, batch_size) - 1`; the examples after the last whole
    batch are left out of the epoch (other ones each time, the order being new).
    """
    chosen = lax.dynamic_slice_in_dim(order, index * batch_size, batch_size)
    # A permutation never leaves the arrays, so the gathers need no bounds check.
    images, labels = (array.at[chosen].get(mode="promise_in_bounds") for array in data)
    return images, labels


def eval_batches(data: ResidentData, batch_size: int) -> EvalBatches:
    """The whole split, in its own order, as `k = ceil(n / b)` batches for one scan.

    The last batch is filled up with zeros that `mask` leaves out, so that means over the mask are
    exact for any batch size.
    """
    n = len(data.labels)
    mask = jnp.ones(n, bool)

    def batched(array):
        padding = [(0, -n % batch_size)] + [(0, 0)] * (array.ndim - 1)
        return jnp.pad(array, padding).reshape(-1, batch_size, *array.shape[1:])

    return EvalBatches(*map(batched, (data.images, data.labels, mask)))
