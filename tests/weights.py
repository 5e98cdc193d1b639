"""Weights without training, and without compiling what would initialize them."""

import jax
import numpy as np


def random_like(tree, seed):
    """Arrays of the shapes of a tree, where they are to lie: small numbers, normalized as usual.

    What is not float32, such as steps and keys, is zero.
    """
    rng = np.random.default_rng(seed)

    def made(path, leaf):
        values = np.zeros(leaf.shape, leaf.dtype)
        if leaf.dtype == np.float32:
            near_one = getattr(path[-1], "key", None) in ("var", "scale")  # of BatchNorm
            values = np.float32(near_one + rng.normal(0, 0.08, leaf.shape))
        return jax.device_put(values, leaf.sharding)

    return jax.tree_util.tree_map_with_path(made, tree)
