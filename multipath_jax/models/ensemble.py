"""Ensembles (Section 6.2): networks trained independently, with averaged predictions."""

from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from multipath_jax.models.family import Family
from multipath_jax.models.plain import plain_cnn


class Ensemble(nn.Module):
    """Networks that are trained independently and whose class probabilities are averaged.

    Its `loss` is the sum of the cross-entropies of its members, which share no parameters.

    Attributes:
      members: networks called with ``(images, train=...)`` that return logits; their names are the
        keys of the parameters.
    """

    members: Sequence[nn.Module]

    preserve_adopted_names: ClassVar[bool] = True

    def __call__(
        self, images: Float[Array, "b h w c"], train: bool = False
    ) -> Float[Array, "b classes"]:
        """The log of the mean probabilities, ``[b h w c] -> [b classes]``."""
        logs = self._log_probabilities(images, train)
        return jax.nn.logsumexp(logs, axis=0) - jnp.log(len(self.members))

    def loss(
        self, images: Float[Array, "b h w c"], labels: Int[Array, " b"], train: bool = True
    ) -> tuple[Float[Array, "b classes"], Float[Array, " b"]]:
        """The log of the mean probabilities, and the sum of the members' cross-entropies.

        Args:
          images: ``[b h w c]``.
          labels: ``[b]``.
          train: passed to the members.

        Returns:
          Log-probabilities ``[b classes]`` and losses ``[b]``.
        """
        logs = self._log_probabilities(images, train)
        own = -jnp.take_along_axis(logs, labels[None, :, None], axis=-1)  # [members b 1]
        mean = jax.nn.logsumexp(logs, axis=0) - jnp.log(len(self.members))
        return mean, own[..., 0].sum(axis=0)

    @nn.compact
    def _log_probabilities(self, images, train) -> Float[Array, "members b classes"]:
        return jnp.stack(
            [jax.nn.log_softmax(member(images, train=train)) for member in self.members]
        )


def base_ensemble(
    num_classes: int, *, members: int = 3, dtype: DTypeLike = jnp.float32
) -> Ensemble:
    """Base Ensemble: several BaseCNNs with different random initializations.

    Args:
      num_classes: width of the output.
      members: number of networks.
      dtype: type of the computation.
    """
    return _ensemble(["BaseCNN"] * members, num_classes, dtype)


def all_ensemble(num_classes: int, *, dtype: DTypeLike = jnp.float32) -> Ensemble:
    """All Ensemble: a BaseCNN, a WideCNN and a DeepCNN.

    Args:
      num_classes: width of the output.
      dtype: type of the computation.
    """
    return _ensemble(["BaseCNN", "WideCNN", "DeepCNN"], num_classes, dtype)


def _ensemble(structures, num_classes, dtype) -> Ensemble:
    return Ensemble(
        tuple(
            plain_cnn(structure, num_classes, dtype=dtype).clone(name=f"member_{number}")
            for number, structure in enumerate(structures, start=1)
        )
    )


FAMILIES: tuple[Family, ...] = (
    Family("BaseCNN-Ensemble", base_ensemble, ("BaseCNN-Ensemble",)),
    Family("All-Ensemble", all_ensemble, ("All-Ensemble",)),
)
