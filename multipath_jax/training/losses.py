"""What is minimized: a loss of the outputs and labels, and what a network adds to it."""

from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from jaxtyping import Array, Float, Int, Num, PyTree

from multipath_jax.data import MixedLabels
from multipath_jax.errors import UserError

Labels = Int[Array, " b"] | MixedLabels
# (outputs, labels [b]) -> the loss of every example [b].
LossFn = Callable[[PyTree, Int[Array, " b"]], Float[Array, " b"]]


def cross_entropy(
    logits: Float[Array, "b classes"], labels: Int[Array, " b"], label_smoothing: float = 0.0
) -> Float[Array, " b"]:
    """The cross-entropy of every example.

    Args:
      logits: before the softmax.
      labels: the classes.
      label_smoothing: the part of each label that is spread evenly over all classes.

    Returns:
      float32, or float64 for float64 logits.
    """
    if not label_smoothing:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(targets, label_smoothing))


def by_share(measure: Callable[[Array], Array], labels: Labels) -> Num[Array, " b"] | Array:
    """What is measured with the labels; with mixed ones, the mean by their shares."""
    if not isinstance(labels, MixedLabels):
        return measure(labels)
    share = labels.share
    return share * measure(labels.labels) + (1 - share) * measure(labels.others)


def make_loss_fn(own: bool, label_smoothing: float, mixed: bool, given: LossFn | None) -> LossFn:
    """The loss of a run: the given one, or the cross-entropy.

    Args:
      own: whether the network has a method `loss`, which then stands in for either.
      label_smoothing: as in `cross_entropy`.
      mixed: whether images and their labels are mixed.
      given: the user's.

    Raises:
      UserError: labels are to be smoothed or mixed where there is no such cross-entropy.
    """
    if own and given is not None:
        raise UserError("loss_fn: this network has a loss of its own; leave loss_fn out")
    if (own or given is not None) and label_smoothing:
        whose = "this network has a loss of its own" if own else "loss_fn is given"
        raise UserError(
            f"label_smoothing={label_smoothing} is the cross-entropy's, but {whose}; use "
            "label_smoothing=0"
        )
    if own and mixed:
        raise UserError(
            "mixup, cutmix: this network has a loss of its own in place of the cross-entropy; use "
            "mixup=0 and cutmix=0"
        )
    return given or partial(cross_entropy, label_smoothing=label_smoothing)


def auxiliary(recorded: Mapping) -> Float[Array, ""]:
    """The sum of the scalars that a network records in its collection ``losses``."""
    terms = traverse_util.flatten_dict(recorded).values()
    # What `sow` recorded is a tuple of the values of all calls.
    values = [value for term in terms for value in (term if isinstance(term, tuple) else (term,))]
    return sum((jnp.sum(jnp.asarray(value)) for value in values), jnp.float32(0))
