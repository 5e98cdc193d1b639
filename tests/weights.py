"""Random weights, without training and without compiling an initialization."""

import jax
import numpy as np


def random_like(tree, seed):
    """Small random arrays with the shapes and shardings of the leaves of a tree.

    Scales and running variances of BatchNorm are close to 1. Arrays that are not float32, such as
    steps and keys, are zero.
    """
    rng = np.random.default_rng(seed)

    def made(path, leaf):
        values = np.zeros(leaf.shape, leaf.dtype)
        if leaf.dtype == np.float32:
            near_one = getattr(path[-1], "key", None) in ("var", "scale")  # of BatchNorm
            values = np.float32(near_one + rng.normal(0, 0.08, leaf.shape))
        return jax.device_put(values, leaf.sharding)

    return jax.tree_util.tree_map_with_path(made, tree)
