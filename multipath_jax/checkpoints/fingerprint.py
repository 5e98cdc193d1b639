"""Checksums of arrays, to detect damaged checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree, UInt32


@jax.jit
def fingerprint(tree: PyTree) -> UInt32[Array, " leaves"]:
    """One uint32 checksum per leaf, computed on the leaves' devices; independent of the sharding.

    The checksum is the sum modulo 2^32 of the array's 32-bit words, each multiplied by a different
    odd number. It detects every change of a single word, and any other change with a probability of
    1 - 2^-32.

    Args:
      tree: a tree of arrays.

    Returns:
      uint32 ``[leaves]``.
    """
    return jnp.stack([_sum_of_words(leaf) for leaf in jax.tree.leaves(tree)])


def _sum_of_words(leaf: Array) -> UInt32[Array, ""]:
    words = _words(jnp.asarray(leaf))
    weight = jnp.zeros(words.shape, jnp.uint32)
    # The flat index of each word, computed without a reshape, which would change the sharding.
    for axis, size in enumerate(words.shape):
        weight = weight * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    # A multiplicative hash (Knuth) of the index; 2 x + 1 is odd.
    return jnp.sum(words * (weight * np.uint32(2654435761) * 2 + 1), dtype=jnp.uint32)


def _words(leaf: Array) -> UInt32[Array, "..."]:
    """The bits of an array's entries as uint32, truncated to 32 bits."""
    if leaf.dtype == jnp.bool_:
        return leaf.astype(jnp.uint32)
    same_size = jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")
    return jax.lax.bitcast_convert_type(leaf, same_size).astype(jnp.uint32)
