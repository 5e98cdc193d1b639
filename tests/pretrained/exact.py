"""Comparison of a network with the weights of a file and the definition of the file's network."""

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import traverse_util

import multipath_jax as mp
from multipath_jax import weights

CLOSE = 1e-5  # relative to the largest output: float32 sums in another order
# Training is compared in float64: batch statistics of few values amplify float32 rounding errors.
CLOSE_64 = 1e-9


def images(size, count=4):
    return np.float32(np.random.default_rng(1).normal(size=(count, 3, size, size)))


def distance(found, expected):
    """The largest difference, relative to the largest value."""
    found, expected = np.asarray(found), np.asarray(expected)
    return np.abs(found - expected).max() / np.abs(expected).max()


def ours(file, name, x, **options):
    """Variables; logits in float32; training logits and the statistics after it in float64."""
    network, variables = mp.load_weights(file, name, **options)
    wide = mp.load_weights(file, name, **options, dtype=jnp.float64)[0]

    @jax.jit
    def both(variables, x):
        logits = network.apply(variables, x.astype(np.float32), train=False)
        return logits, wide.apply(variables, x, train=True, mutable=["batch_stats"])

    logits, (training, updated) = both(variables, jnp.float64(x.transpose(0, 2, 3, 1)))
    return variables, logits, training, updated["batch_stats"]


def named(variables):
    """The arrays of variables, by their names in a file."""
    flat = traverse_util.flatten_dict(jax.device_get(variables))
    return safetensors.numpy.load(weights.to_file(flat, {}))


def check(file, name, arrays, x, expected, **options):
    """Compares logits and a training step, and the arrays written back to a file.

    Args:
      file: contains ``arrays``.
      expected: logits, training logits, and running statistics after the step, by name.
    """
    variables, logits, training, statistics = ours(file, name, x, **options)
    assert logits.dtype == np.float32
    assert distance(logits, expected[0]) < CLOSE
    assert distance(training, expected[1]) < CLOSE_64
    after = named({"params": variables["params"], "batch_stats": statistics})
    for key, value in expected[2].items():
        if key.endswith("running_mean"):
            assert distance(after[key], value) < CLOSE, key
        else:  # PyTorch averages unbiased variances, ours are the biased ones that normalize
            now, theirs = (v - 0.9 * arrays[key] for v in (after[key], value))
            assert (now < theirs).all(), key
    back = named(variables)
    assert back.keys() == arrays.keys()
    for key, value in back.items():
        np.testing.assert_array_equal(value, arrays[key])
