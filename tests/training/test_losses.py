"""Training losses, compared with their definitions."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multipath_jax.data import Heads, MixedLabels
from multipath_jax.errors import UserError
from multipath_jax.training import losses

LOGITS, LABELS = jnp.array([[1.0, 2.0, 0.0], [0.0, 0.0, 3.0]]), jnp.array([0, 2])
LOGS = np.asarray(LOGITS) - np.log(np.exp(LOGITS).sum(-1, keepdims=True))


@pytest.mark.parametrize(
    ("recorded", "expected"),
    [
        ({}, 0),
        ({"block_1": {"budget": (jnp.float32(0.5),)}}, 0.5),
        ({"a": {"x": (jnp.float32(1), jnp.float32(2))}, "y": jnp.float32(4)}, 7),
        ({"a": (jnp.ones(3),)}, 3),
    ],
)
def test_what_a_network_records_is_added_up(recorded, expected):
    assert float(losses.auxiliary(recorded)) == expected


def test_cross_entropy_with_and_without_smoothing():
    """Smoothing of 0.3 gives 0.1 to each of the three classes."""
    np.testing.assert_allclose(losses.cross_entropy(LOGITS, LABELS), -LOGS[[0, 1], LABELS], 1e-6)
    targets = np.full((2, 3), 0.1)
    targets[[0, 1], LABELS] += 0.7
    found = losses.cross_entropy(LOGITS, LABELS, 0.3)
    np.testing.assert_allclose(found, -(targets * LOGS).sum(-1), 1e-6)


def test_mixed_labels_count_by_their_shares():
    labels = MixedLabels(LABELS, jnp.array([1, 0]), jnp.array([0.25, 1.0]))
    found = losses.by_share(partial(losses.cross_entropy, LOGITS), labels)
    expected = -(0.25 * LOGS[0, 0] + 0.75 * LOGS[0, 1]), -LOGS[1, 2]
    np.testing.assert_allclose(found, expected, 1e-6)


HEADS = Heads(("a", "b"), (2, 3))
BOTH = jnp.array([[1.0, 2.0, 9.0, 8.0, 7.0], [9.0, 9.0, 0.5, 0.0, 3.0]])  # one example per head


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_an_example_has_the_cross_entropy_of_its_own_head(smoothing):
    def loss(logits):
        return losses.cross_entropy(logits, jnp.array([1, 2 + 2]), smoothing, HEADS)

    first = losses.cross_entropy(BOTH[:1, :2], jnp.array([1]), smoothing)
    second = losses.cross_entropy(BOTH[1:, 2:], jnp.array([2]), smoothing)
    np.testing.assert_allclose(loss(BOTH), jnp.concatenate([first, second]), 1e-6)
    gradient = jax.grad(lambda logits: loss(logits).sum())(BOTH)
    assert (np.asarray(gradient) != 0).tolist() == [
        [True] * 2 + [False] * 3,
        [False] * 2 + [True] * 3,
    ]
    assert np.isfinite(gradient).all()


def test_an_image_mixed_of_two_data_sets_counts_in_both_heads():
    labels = MixedLabels(jnp.array([1]), jnp.array([2]), jnp.array([0.25]))
    found = losses.by_share(partial(losses.cross_entropy, BOTH[:1], heads=HEADS), labels)
    first = losses.cross_entropy(BOTH[:1, :2], jnp.array([1]))
    second = losses.cross_entropy(BOTH[:1, 2:], jnp.array([0]))
    np.testing.assert_allclose(found, 0.25 * first + 0.75 * second, 1e-6)


def squared(outputs, labels):
    return (outputs[:, 0] - labels) ** 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((True, 0.1, False, None), "label_smoothing=0.1 .* this network defines its own loss"),
        ((False, 0.1, False, squared), "label_smoothing=0.1 .* loss_fn is given; use label_smo"),
        ((True, 0.0, True, None), "mixup, cutmix: need the cross-entropy"),
        ((True, 0.0, False, squared), "loss_fn: this network defines its own loss"),
        ((True, 0.0, False, None, HEADS), "2 data sets need .* this network defines its own loss"),
    ],
)
def test_losses_that_exclude_each_other_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        losses.make_loss_fn(*arguments)


def test_a_given_loss_is_taken_as_it_is():
    assert losses.make_loss_fn(False, 0.0, True, squared) is squared
