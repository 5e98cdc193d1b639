"""Evaluation metrics: cross-entropy, top-1 and top-5 error."""

import flax
import jax
import jax.numpy as jnp
from clu import metrics
from jaxtyping import Array, Bool, Float, Int

from multipath_jax.data import Heads


@flax.struct.dataclass
class EvalMetrics(metrics.Collection):
    """Mean cross-entropy, top-1 error and top-5 error of a split, the errors from 0 to 1."""

    loss: metrics.Average.from_output("loss")
    error: metrics.Average.from_output("wrong")
    top5_error: metrics.Average.from_output("wrong5")


def is_wrong(
    logits: Float[Array, "b classes"], labels: Int[Array, " b"], heads: Heads | None = None
) -> Bool[Array, " b"]:
    """Whether the largest logit, of several heads that of the label's own, is not the label's."""
    if heads is not None:
        logits = jnp.where(heads.own(labels), logits, -jnp.inf)
    return logits.argmax(-1) != labels


def is_wrong_among(
    logits: Float[Array, "b classes"], labels: Int[Array, " b"], k: int
) -> Bool[Array, " b"]:
    """Whether the label is not among the ``k`` largest logits; ``k`` is at most the classes."""
    _, largest = jax.lax.top_k(logits, min(k, logits.shape[-1]))
    return (largest != labels[:, None]).all(-1)
