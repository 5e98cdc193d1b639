"""Cross-stitch units: routing by learned coefficients that are the same for every input."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from multipath_jax import routing
from multipath_jax.layers.routers import Router


def own_weights(m: int, n: int, own: float) -> Float[Array, "m n"]:
    """What each of n outputs takes at first from each of m inputs; columns sum to 1.

    Output j takes ``own`` from its own input (j modulo m) and shares the rest among the others.
    """
    is_own = jnp.arange(m)[:, None] == jnp.arange(n)[None] % m
    others = (1 - own) / (m - 1) if m > 1 else 0.0
    return jnp.where(is_own, jnp.float32(own if m > 1 else 1.0), jnp.float32(others))


class CrossStitch(Router):
    """Misra et al., "Cross-Stitch Networks" (2016), Eq. 1: ``Y_j = sum_i a_ij X_i``.

    Our Eq. 5 with coefficients ``a [m n]`` that are learned, not computed from the input. At first
    they are convex combinations, as theirs are; one tensor (m = 1) reaches all n paths unchanged.
    They need not stay probabilities, so no ``gates`` are recorded.

    Attributes:
      own: the initial weight of a path in its own output.
    """

    own: float = 0.9

    @nn.compact
    def route(self, xs: Float[Array, "m b *rest"], train: bool) -> Float[Array, "n b *rest"]:
        """Eq. 5 with the coefficients in place of gates."""
        m, n = len(xs), self.num_outputs
        coefficients = self.param("coefficients", lambda key: own_weights(m, n, self.own))
        gates = jnp.broadcast_to(coefficients[:, None], (m, xs.shape[1], n))
        return routing.cross_connect(xs, gates)
