"""A number for each array by which a damaged checkpoint is told from a whole one."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree, UInt32


@jax.jit
def fingerprint(tree: PyTree) -> UInt32[Array, " leaves"]:
    """One uint32 a leaf, computed where the leaves lie, whatever their sharding.

    The sum modulo 2^32 of an array's words, each times an odd number of its own: a change of any
    one word shows for certain, any other change but once in 2^32 times.
    """
    return jnp.stack([_sum_of_words(leaf) for leaf in jax.tree.leaves(tree)])


def _sum_of_words(leaf: Array) -> UInt32[Array, ""]:
    words = _words(jnp.asarray(leaf))
    weight = jnp.zeros(words.shape, jnp.uint32)
    # The place of each word in the array, without giving up the array's sharding to flatten it.
    for axis, size in enumerate(words.shape):
        weight = weight * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    # Knuth's multiplier spreads the places; twice anything plus one is odd.
    return jnp.sum(words * (weight * np.uint32(2654435761) * 2 + 1), dtype=jnp.uint32)


def _words(leaf: Array) -> UInt32[Array, "..."]:
    """The bits of an array's entries as uint32, up to 32 of each."""
    if leaf.dtype == jnp.bool_:
        return leaf.astype(jnp.uint32)
    same_size = jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")
    return jax.lax.bitcast_convert_type(leaf, same_size).astype(jnp.uint32)
