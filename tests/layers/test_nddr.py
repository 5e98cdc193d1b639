"""NDDR layers against their definition: concatenate, 1x1 convolution, BatchNorm, ReLU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multipath_jax.layers import NDDR, ConvStage, CrossStitch, NDDRShortcut, Parallel, Share

MAPS = jax.random.normal(jax.random.key(0), (3, 4, 2, 3, 5))  # m b h w c


def randomized(variables, seed=1):
    """Random variables of the same shapes, instead of initial zeros and ones."""
    leaves, structure = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    drawn = [jax.random.uniform(k, x.shape) + 0.5 for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, drawn)


def nddr(xs, kernel, bias, scale, shift, mean, variance):
    """Computes one output path from m arrays ``[b ... c]``, pixel by pixel."""
    joined = np.concatenate([np.asarray(x) for x in xs], axis=-1)
    y = np.empty((*joined.shape[:-1], len(bias)))
    for pixel in np.ndindex(joined.shape[:-1]):
        y[pixel] = joined[pixel] @ kernel + bias
    return np.maximum((y - mean) / np.sqrt(variance + 1e-5) * scale + shift, 0)


@pytest.mark.parametrize("xs", [MAPS, MAPS[:2], MAPS[:, :, 0, 0]])
@pytest.mark.parametrize("train", [False, True])
def test_each_output_fuses_all_inputs_by_the_definition(xs, train):
    n, f = 2, 4
    layer = NDDR(n, features=f)
    variables = randomized(layer.init(jax.random.key(0), xs))
    params, statistics = (
        jax.tree.map(np.asarray, variables[key]) for key in ("params", "batch_stats")
    )
    ys, _ = layer.apply(variables, xs, train=train, mutable=["batch_stats"])
    for j in range(n):
        kernel, bias = params["kernel"][j].reshape(-1, f), params["bias"][j]
        mean, variance = statistics["norm"]["mean"][j], statistics["norm"]["var"][j]
        if train:
            y = np.concatenate(list(np.asarray(xs)), axis=-1) @ kernel + bias
            mean, variance = (s(y.reshape(-1, f), axis=0) for s in (np.mean, np.var))
        norm = params["norm"]
        expected = nddr(xs, kernel, bias, norm["scale"][j], norm["bias"][j], mean, variance)
        np.testing.assert_allclose(ys[j], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("paths", "other"), [(2, 0.1), (3, 0.05)])
@pytest.mark.parametrize("features", [5, 10])
def test_kernels_begin_diagonal(paths, other, features):
    layer = NDDR(paths, features=features)
    kernel = layer.init(jax.random.key(0), MAPS[:paths])["params"]["kernel"]
    assert kernel.shape == (paths, paths, 5, features)
    for j, i in np.ndindex(paths, paths):
        diagonal = np.tile(np.eye(5), features // 5)
        np.testing.assert_allclose(kernel[j, i], (0.9 if i == j else other) * diagonal, rtol=1e-6)


def shortcut_layers():
    return (
        Share(2, name="share"),
        ConvStage((4,), pool=True, name="stage_1"),
        CrossStitch(2, name="stitch"),
        ConvStage((6,), name="stage_2"),
    )


def test_a_shortcut_joins_all_stages_with_one_convolution_for_all_paths():
    x = jax.random.normal(jax.random.key(2), (1, 2, 8, 8, 3))
    module = NDDRShortcut(2, layers=shortcut_layers())
    variables = randomized(module.init(jax.random.key(0), x))
    ys = module.apply(variables, x)

    own = {key: variables[key]["stage_1"] for key in variables}
    first = Parallel(ConvStage((4,), pool=True)).apply(own, jnp.concatenate([x, x]))
    stitched = CrossStitch(2).apply({"params": variables["params"]["stitch"]}, first)
    own = {key: variables[key]["stage_2"] for key in variables}
    second = Parallel(ConvStage((6,))).apply(own, stitched)

    params, statistics = (
        jax.tree.map(np.asarray, variables[key]) for key in ("params", "batch_stats")
    )
    conv, norm, statistics = params["shortcut"], params["norm"], statistics["norm"]
    assert conv["kernel"].shape == (10, 6)
    for j in range(2):
        expected = nddr(
            [first[j], second[j]],
            conv["kernel"],
            conv["bias"],
            norm["scale"],
            norm["bias"],
            statistics["mean"],
            statistics["var"],
        )
        np.testing.assert_allclose(ys[j], expected, rtol=1e-4, atol=1e-4)


def test_a_shortcut_resizes_larger_stages_to_the_last():
    x = jax.random.normal(jax.random.key(2), (1, 2, 8, 8, 3))
    layers = (Share(2), ConvStage((4,), pool=True), ConvStage((6,), pool=True))
    ys, _ = NDDRShortcut(2, layers=layers).init_with_output(jax.random.key(0), x)
    assert ys.shape == (2, 2, 2, 2, 6)
