"""Tests of HyperWRN40-2: its layers, and that a single generator makes all kernels."""

import jax
import jax.numpy as jnp
import numpy as np

import multipath_jax
from multipath_jax.models.hyper import HyperWideResNet

IMAGES = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))


def test_the_layers_are_wrn_40_2_s():
    model = multipath_jax.create_model("HyperWRN40-2")
    images = jnp.zeros((1, 32, 32, 3))
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), images))["params"]
    embeddings = [
        leaf.shape[0] * leaf.shape[1]
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if path[-1].key == "embedding"
    ]
    # The 3x3 kernels of 36 convolutions, as in WRN-40-2, consist of blocks of 16x16 channels.
    assert len(embeddings) == 36
    assert sum(embeddings) == (2 + 11 * 4) + (8 + 11 * 16) + (32 + 11 * 64)


def test_every_kernel_comes_from_the_one_generator():
    model = HyperWideResNet(4, blocks=1, width=1)
    variables = jax.jit(model.init)(jax.random.key(0), IMAGES)
    variables = {key: variables[key] for key in ("params", "batch_stats")}

    @jax.jit
    def response(params):
        return model.apply(variables | {"params": params}, IMAGES)

    def without_kernels(params):
        silent = jax.tree.map(jnp.zeros_like, params["generator"])
        return response(params | {"generator": silent})

    # Without the generator's kernels, only the shortcuts remain: embeddings have no effect.
    params = variables["params"]
    shifted = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf + 1 if path[-1].key == "embedding" else leaf, params
    )
    assert not np.allclose(response(shifted), response(params), atol=1e-3)
    np.testing.assert_array_equal(without_kernels(params), without_kernels(shifted))
