"""Tests that every network learns: three training steps on real images lower the loss."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

import multipath_jax
from multipath_jax.models import family_of
from multipath_jax.training.state import create_state
from multipath_jax.training.step import Batch, make_train_step

SKIPPING = {"SkipNet", "BlockDrop", "ConvNet-AIG", "ConvNet-AIG-all"}
NEEDS_32 = ("VGG", "CapsNet")  # too much pooling, or too large kernels, for 8x8 pixels


def batch_for(name):
    """Sixteen handwritten digits of 8x8 pixels, enlarged to 32x32 if the network needs that."""
    images = load_digits().images[:16, ..., None]
    if family_of(name).image_shape[0] > 32 or name.startswith(NEEDS_32):
        images = np.kron(images, np.ones((1, 4, 4, 1)))
    return Batch(jnp.asarray(images / 16, jnp.float32), jnp.asarray(load_digits().target[:16]))


@pytest.mark.slow
@pytest.mark.parametrize("name", multipath_jax.list_models())
def test_three_steps_lower_the_loss(name):
    model, batch = multipath_jax.create_model(name), batch_for(name)
    optimizer = optax.sgd(0.01, momentum=0.9)
    state = jax.jit(lambda: create_state(model, optimizer, batch.images.shape[1:], 0))()
    before = state.params
    # The tests compile with little optimization; CapsNet's small products would then take minutes.
    options = {"xla_backend_optimization_level": 3} if name == "CapsNet" else None
    step = jax.jit(
        make_train_step(model, optimizer, lambda state, batch: batch.images),
        compiler_options=options,
    )
    losses = []
    for _ in range(4):  # the fourth step reports the loss after three steps
        state, metrics = step(state, batch)
        losses.append(float(metrics.loss.compute()))
    assert np.isfinite(losses).all()
    assert losses[3] < losses[0]
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, state.params)
    unmoved = [
        jax.tree_util.keystr(path)
        for path, has_moved in jax.tree_util.tree_leaves_with_path(moved)
        if not has_moved
    ]
    # With 16 channels, a reduction of 16 leaves one hidden unit, which a ReLU can keep at zero. In
    # a block that is skipped for all sixteen images, only the gate has gradients.
    excused = r"squeeze_excite|block_\d+'\]\['conv" if name in SKIPPING else "squeeze_excite"
    unmoved = [path for path in unmoved if not re.search(excused, path)]
    assert not unmoved
