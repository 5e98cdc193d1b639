"""Loss functions: cross-entropy, mixed labels, auxiliary losses of a network."""

from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from jaxtyping import Array, Float, Int, Num, PyTree

from multipath_jax.data import Heads, MixedLabels
from multipath_jax.errors import UserError

Labels = Int[Array, " b"] | MixedLabels
# (outputs, labels [b]) -> loss of each example [b].
LossFn = Callable[[PyTree, Int[Array, " b"]], Float[Array, " b"]]


def cross_entropy(
    logits: Float[Array, "b classes"],
    labels: Int[Array, " b"],
    label_smoothing: float = 0.0,
    heads: Heads | None = None,
) -> Float[Array, " b"]:
    """The softmax cross-entropy of each example.

    Args:
      logits: ``[b classes]``.
      labels: ``[b]``.
      label_smoothing: the part of each label that is distributed evenly over all classes.
      heads: of several data sets; the classes of an example are then those of its own head.

    Returns:
      ``[b]``, in the type of the logits.
    """
    own = None if heads is None else heads.own(labels)
    if not label_smoothing:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels, where=own)
    targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    targets = optax.smooth_labels(targets, label_smoothing, where=own)
    return optax.softmax_cross_entropy(logits, targets, where=own)


def by_share(measure: Callable[[Array], Array], labels: Labels) -> Num[Array, " b"] | Array:
    """Evaluates ``measure(labels)``; for mixed labels, the mean weighted by their shares.

    Args:
      measure: a function of labels ``[b]``.
      labels: ``[b]``, or mixed labels.
    """
    if not isinstance(labels, MixedLabels):
        return measure(labels)
    share = labels.share
    return share * measure(labels.labels) + (1 - share) * measure(labels.others)


def make_loss_fn(
    own: bool,
    label_smoothing: float,
    mixed: bool,
    given: LossFn | None,
    heads: Heads | None = None,
) -> LossFn:
    """Selects the loss function of a run: the user's, or the cross-entropy.

    Args:
      own: whether the network has a method `loss`, which is used instead.
      label_smoothing: as in `cross_entropy`.
      mixed: whether mixup or cutmix is used.
      given: the user's loss function, if any.
      heads: of several data sets; the user's loss function is then called with the outputs of all
        heads, and labels that are numbered over all data sets.

    Raises:
      UserError: label smoothing, mixing or several data sets, with a loss that does not support it.
    """
    if own and heads:
        raise UserError(
            f"{len(heads.names)} data sets need the cross-entropy or loss_fn, but this network "
            "defines its own loss; use another network, or one data set"
        )
    if own and given is not None:
        raise UserError("loss_fn: this network defines its own loss; remove loss_fn")
    if (own or given is not None) and label_smoothing:
        whose = "this network defines its own loss" if own else "loss_fn is given"
        raise UserError(
            f"label_smoothing={label_smoothing} needs the cross-entropy, but {whose}; use "
            "label_smoothing=0"
        )
    if own and mixed:
        raise UserError(
            "mixup, cutmix: need the cross-entropy or loss_fn, but this network defines its own "
            "loss; use mixup=0 and cutmix=0"
        )
    return given or partial(cross_entropy, label_smoothing=label_smoothing, heads=heads)


def auxiliary(recorded: Mapping) -> Float[Array, ""]:
    """The sum of the scalars that a network sows into its collection ``losses``."""
    terms = traverse_util.flatten_dict(recorded).values()
    # Unwraps sown values, which are tuples with one entry per call.
    values = [value for term in terms for value in (term if isinstance(term, tuple) else (term,))]
    return sum((jnp.sum(jnp.asarray(value)) for value in values), jnp.float32(0))
