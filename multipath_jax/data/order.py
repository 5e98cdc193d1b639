"""The order in which training examples are used, which depends only on a key and the epoch."""

from collections.abc import Sequence
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int, Int32, Int64, PRNGKeyArray


def epoch_order(key: PRNGKeyArray, epoch: int | Int[Array, ""], n: int) -> Int32[Array, " n"]:
    """The order of the examples in one epoch.

    It depends only on the arguments, so a run that resumes in the middle of an epoch recomputes the
    same order. Compute it once per epoch, not in every step: it is a sort.

    Args:
      key: a random key, the same in all epochs.
      epoch: from zero.
      n: number of examples.

    Returns:
      A permutation, int32 `[n]`.
    """
    return jax.random.permutation(jax.random.fold_in(key, epoch), n).astype(jnp.int32)


def mixed_order(
    key: PRNGKeyArray,
    epoch: int | Int[Array, ""],
    sizes: Sequence[int],
    shares: Sequence[int],
    batch_size: int,
) -> Int32[Array, " n"]:
    """The order of the examples of several data sets in one epoch, as `epoch_order`.

    Every whole batch has d data sets in proportion to their shares, to within d - 1 examples of
    each, in random order. The order goes through all examples of a data set before it repeats one,
    also from one epoch to the next.

    Args:
      key: a random key, the same in all epochs.
      epoch: from zero; its product with a share is at most 2^31 - 1.
      sizes: number of examples of each data set, which are consecutive.
      shares: number of examples of each data set in an epoch of n.
      batch_size: number of examples per batch.

    Returns:
      Indices of examples, int32 `[n]`.
    """
    starts = np.cumsum([0, *sizes[:-1]])
    parts = [
        start + _cycled(jax.random.fold_in(key, number), epoch, size, share)
        for number, (start, size, share) in enumerate(zip(starts, sizes, shares, strict=True))
    ]
    order = jnp.concatenate(parts)[interleaved(shares)]
    whole = len(order) - len(order) % batch_size
    shuffle_key = jax.random.fold_in(jax.random.fold_in(key, len(sizes)), epoch)
    batches = order[:whole].reshape(-1, batch_size)
    shuffled = jax.random.permutation(shuffle_key, batches, axis=1, independent=True)
    return jnp.concatenate([shuffled.reshape(-1), order[whole:]]).astype(jnp.int32)


def _cycled(
    key: PRNGKeyArray, epoch: int | Int[Array, ""], size: int, share: int
) -> Int32[Array, " share"]:
    """The examples `[share]` of an epoch, from an endless sequence of permutations of `size`."""
    first, start = divmod(jnp.asarray(epoch, jnp.int32) * share, size)
    # Where an epoch has a whole number of permutations, it starts with one.
    count = -(-share // size) + (share % size > 0)
    keys = jax.vmap(lambda number: jax.random.fold_in(key, number))(first + jnp.arange(count))
    permutations = jax.vmap(lambda one: jax.random.permutation(one, size))(keys)
    return lax.dynamic_slice_in_dim(permutations.reshape(-1), start, share).astype(jnp.int32)


def interleaved(shares: Sequence[int]) -> Int64[np.ndarray, " n"]:
    """Interleaves d sequences evenly: the places of the items in their concatenation, in order.

    The i-th of `m` items is at the fraction (2 i + 1) / 2 m of the result. The items of a sequence
    keep their order. Of b consecutive places, b m / n are of this sequence, to within d - 1.

    Args:
      shares: the lengths of the sequences, whose sum is n.

    Returns:
      A permutation, `[n]`.
    """
    at = np.concatenate([(2 * np.arange(share) + 1) / (2 * share) for share in shares])
    return np.argsort(at, kind="stable")


def divided(total: int, weights: Sequence[float | int]) -> list[int]:
    """Divides a number into whole parts in proportion to weights, to within one.

    Args:
      total: the number.
      weights: positive weights, one for each part.

    Returns:
      The parts, whose sum is `total`: rounded down, and one more for those that lost most.
    """
    exact = [Fraction(weight) * total / sum(map(Fraction, weights)) for weight in weights]
    parts = [int(one) for one in exact]
    lost = sorted(range(len(parts)), key=lambda number: parts[number] - exact[number])
    for number in lost[: total - sum(parts)]:
        parts[number] += 1
    return parts
