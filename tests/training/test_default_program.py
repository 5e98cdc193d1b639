"""Without options beyond the paper, the training step has the operations of a plain step."""

from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import optax
import pytest
import tiny
from jax.extend import core

from multipath_jax.evaluation.metrics import is_wrong
from multipath_jax.training.metrics import TrainMetrics, routing_statistics
from multipath_jax.training.optimizer import is_decayed
from multipath_jax.training.state import AUGMENT, GATES
from multipath_jax.training.step import Batch

BATCH, SHIFT = 16, 1
# The options of a step beyond the paper, with their keys of the config.
BEYOND = {
    "nesterov": {"optimizer.nesterov": True},
    "reflection": {"dataset.shift_mode": "reflect"},
    "alternating mirrors": {"dataset.alternate_flip": True},
    "cutout": {"dataset.cutout": 2},
    "random erasing": {"dataset.erase": 0.5},
    "TrivialAugment": {"dataset.trivial_augment": True},
    "mixup": {"mixup": 0.2},
    "cutmix": {"cutmix": 1.0},
    "label smoothing": {"label_smoothing": 0.1},
    "moving average": {"ema": 0.9},
    "accumulation": {"accumulate": 2},
}


def made(data_dir, **changes):
    settings = {"dataset.flip": True, "dataset.shift": SHIFT, "batch_size": BATCH}
    return tiny.make_setup(tiny.tiny_config(data_dir, **settings | changes))


def operations(step, setup):
    """Counts the operations of a step by name, and by shapes and types of their outputs."""
    images = jax.ShapeDtypeStruct((BATCH, *setup.dataset.image_shape), jnp.uint8)
    batch = Batch(images, jax.ShapeDtypeStruct((BATCH,), jnp.int32))

    def walk(jaxpr):
        for eqn in jaxpr.eqns:
            yield eqn.primitive.name, *(str(out.aval) for out in eqn.outvars)
            for body in core.jaxprs_in_params(eqn.params):
                yield from walk(body)

    return Counter(walk(jax.make_jaxpr(step)(setup.abstract_carry.state, batch).jaxpr))


def plain_step(setup):
    """The step of Sections 6.1 and 6.2 only: shift, flip, cross-entropy, SGD with momentum."""
    mean, std = setup.dataset.mean, setup.dataset.std
    sgd = optax.sgd(setup.learning_rate, momentum=0.9)
    mask = partial(is_decayed, without=setup.config.optimizer.no_decay)
    optimizer = optax.chain(optax.add_decayed_weights(5e-4, mask=mask), sgd)

    def prepared(key, images):
        shift_key, flip_key = jax.random.split(key)
        images = (images.astype(jnp.float32) / 255 - mean) / std
        height, width = images.shape[1:3]
        margin = (SHIFT, SHIFT)
        padded = jnp.pad(images, ((0, 0), margin, margin, (0, 0)))
        places = jnp.array([padded.shape[1] - height + 1, padded.shape[2] - width + 1])
        offsets = jax.random.randint(shift_key, (BATCH, 2), 0, places)

        def crop(image, offset):
            return jax.lax.dynamic_slice(image, (*offset, 0), (height, width, image.shape[-1]))

        shifted = jax.vmap(crop)(padded, offsets)
        mirrored = jax.random.bernoulli(flip_key, shape=(BATCH, 1, 1, 1))
        return jnp.where(mirrored, shifted[:, :, ::-1], shifted)

    def loss_of(params, batch_stats, images, labels, key):
        variables = {"params": params, "batch_stats": batch_stats}
        logits, updates = setup.placement.apply(
            variables,
            images,
            train=True,
            mutable=["batch_stats", "intermediates", "losses"],
            rngs={"gates": key, "params": key},
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        routing = routing_statistics(updates["intermediates"])
        loss = losses.mean() + jnp.float32(0)  # this network has no auxiliary losses
        return loss, (updates["batch_stats"], loss, is_wrong(logits, labels), routing)

    @jax.jit
    def step(state, batch):
        run_key = jax.random.wrap_key_data(state.rng)
        augment_key = jax.random.fold_in(jax.random.fold_in(run_key, AUGMENT), state.step)
        images = prepared(augment_key, batch.images)
        run_key = jax.random.wrap_key_data(state.rng)
        gates_key = jax.random.fold_in(jax.random.fold_in(run_key, GATES), state.step)
        gradient = jax.grad(loss_of, has_aux=True)
        grads, (batch_stats, loss, wrong, routing) = gradient(
            state.params, state.collections["batch_stats"], images, batch.labels, gates_key
        )
        changes, opt_state = optimizer.update(grads, state.opt_state, state.params)
        new = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, changes),
            collections={"batch_stats": batch_stats},
            opt_state=opt_state,
        )
        metrics = TrainMetrics.single_from_model_output(
            loss=loss, wrong=wrong, routing=routing, step=new.step
        )
        return new, metrics

    return step


@pytest.fixture(scope="module")
def plain(data_dir):
    setup = made(data_dir)
    return operations(plain_step(setup), setup)


def test_with_every_key_off_the_step_is_the_plain_one(plain, data_dir):
    setup = made(data_dir)
    assert operations(setup.train_step, setup) == plain


@pytest.mark.parametrize("what", BEYOND)
def test_what_is_turned_on_would_be_seen(what, plain, data_dir):
    setup = made(data_dir, **BEYOND[what])
    assert operations(setup.train_step, setup) != plain
