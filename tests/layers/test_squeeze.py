"""Squeeze-and-Excitation against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multipath_jax.layers import ConvStage, SqueezeExcite

X = jax.random.normal(jax.random.key(0), (2, 3, 4, 32))


def squeeze_excite(x, squeeze, excite):
    """The definition for one image ``[h w c]``: GAP, dense, ReLU, dense, sigmoid, scale."""
    z = x.mean(axis=(0, 1))
    hidden = np.maximum(z @ squeeze["kernel"] + squeeze["bias"], 0)
    scale = 1 / (1 + np.exp(-(hidden @ excite["kernel"] + excite["bias"])))
    return np.stack([x[..., c] * scale[c] for c in range(len(scale))], axis=-1)


@pytest.mark.parametrize(("ratio", "hidden"), [(16, 2), (4, 8), (64, 1)])
def test_every_channel_is_scaled_by_the_definition(ratio, hidden):
    layer = SqueezeExcite(ratio)
    variables = layer.init(jax.random.key(1), X)
    params = jax.tree.map(np.asarray, variables["params"])
    assert params["squeeze"]["kernel"].shape == (32, hidden)
    expected = np.stack([squeeze_excite(np.asarray(x), **params) for x in X])
    np.testing.assert_allclose(layer.apply(variables, X), expected, rtol=1e-5, atol=1e-6)


def test_the_output_has_the_type_of_the_computation_and_weights_are_float32():
    layer = SqueezeExcite(dtype=jnp.bfloat16)
    x = X.astype(jnp.bfloat16)
    variables = layer.init(jax.random.key(1), x)
    assert layer.apply(variables, x).dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_a_stage_squeezes_after_every_convolution():
    stage = ConvStage((32, 16), pool=True, squeeze=True)
    variables = stage.init(jax.random.key(1), X)
    assert set(variables["params"]) == {"conv_1", "squeeze_1", "conv_2", "squeeze_2"}
    # The sigmoid of 100 is one, so the stage computes the same as without squeeze_excite.
    params = variables["params"] | {
        name: {**variables["params"][name], "excite": wide_open(variables["params"][name])}
        for name in ("squeeze_1", "squeeze_2")
    }
    plain = {name: params[name] for name in ("conv_1", "conv_2")}
    np.testing.assert_allclose(
        stage.apply(variables | {"params": params}, X),
        ConvStage((32, 16), pool=True).apply(variables | {"params": plain}, X),
        rtol=1e-5,
    )


def wide_open(squeeze):
    excite = squeeze["excite"]
    return {"kernel": jnp.zeros_like(excite["kernel"]), "bias": jnp.full_like(excite["bias"], 100)}
