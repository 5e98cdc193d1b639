"""Generated kernels against their definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multipath_jax.layers import HyperConv, KernelGenerator

X = jax.random.normal(jax.random.key(0), (2, 6, 6, 4))


def tile(z, hidden, out, side, channels):
    """Eq. 2 of Ha et al. (2017): the tile ``[k k in out]`` of an embedding, by input channel."""
    kernel = np.zeros((side, side, channels, channels))
    for i in range(channels):
        a = z @ hidden["kernel"][:, i] + hidden["bias"][i]
        kernel[:, :, i] = (a @ out["kernel"] + out["bias"]).reshape(side, side, channels)
    return kernel


def assembled(params, side=3, channels=2):
    z, generator = params["embedding"], params["generator"]
    rows, columns = z.shape[:2]
    kernel = np.zeros((side, side, rows * channels, columns * channels))
    for r, c in np.ndindex(rows, columns):
        inputs = slice(r * channels, (r + 1) * channels)
        outputs = slice(c * channels, (c + 1) * channels)
        kernel[:, :, inputs, outputs] = tile(z[r, c], **generator, side=side, channels=channels)
    return kernel


@pytest.mark.parametrize("strides", [1, 2])
def test_a_convolution_with_a_kernel_put_together_from_tiles(strides):
    layer = HyperConv(6, KernelGenerator(channels=2, hidden=5), strides, embedding=7)
    variables = layer.init(jax.random.key(1), X)
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"])
    assert params["embedding"].shape == (2, 3, 7)
    kernel = assembled(params)
    padded = np.pad(X, ((0, 0), (1, 1), (1, 1), (0, 0)))
    full = sum(padded[:, i : i + 6, j : j + 6] @ kernel[i, j] for i, j in np.ndindex(3, 3))
    expected = full[:, ::strides, ::strides]
    np.testing.assert_allclose(layer.apply(variables, X), expected, rtol=1e-4, atol=1e-5)


def test_kernels_begin_with_the_variance_of_he_normal():
    generator = KernelGenerator()
    layer = HyperConv(64, generator)
    x = jnp.zeros((1, 4, 4, 48))
    params = layer.init(jax.random.key(0), x)["params"]
    tiles = generator.apply({"params": params["generator"]}, params["embedding"])
    assert tiles.shape == (3, 4, 3, 3, 16, 16)
    assert tiles.var() == pytest.approx(2 / (9 * 48), rel=0.3)  # for one draw of the generator


def test_channels_that_no_tiles_fill_are_refused():
    with pytest.raises(ValueError, match="4 input and 6 output channels must be multiples of 16"):
        HyperConv(6, KernelGenerator()).init(jax.random.key(0), X)
