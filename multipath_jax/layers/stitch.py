"""Cross-stitch units: mixing paths by learned coefficients that do not depend on the input."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from multipath_jax import routing
from multipath_jax.layers.routers import Router


def own_weights(m: int, n: int, own: float) -> Float[Array, "m n"]:
    """Initial coefficients of m inputs in n outputs, ``[m n]``; columns sum to 1.

    The coefficient of output j is ``own`` for its own input (j modulo m); the other inputs have
    equal coefficients.
    """
    is_own = jnp.arange(m)[:, None] == jnp.arange(n)[None] % m
    others = (1 - own) / (m - 1) if m > 1 else 0.0
    return jnp.where(is_own, jnp.float32(own if m > 1 else 1.0), jnp.float32(others))


class CrossStitch(Router):
    """Misra et al., "Cross-Stitch Networks" (2016), Eq. 1: ``Y_j = sum_i a_ij X_i``.

    This is Eq. 5 of our paper with learned coefficients ``a [m n]`` in place of gates. Their
    initial values make convex combinations, as in Misra et al.; with m = 1 all outputs equal the
    input. Coefficients need not remain probabilities, so no ``gates`` are sown.
    ``[m b ...] -> [n b ...]``.

    Attributes:
      own: initial coefficient of each path in its own output.
    """

    own: float = 0.9

    @nn.compact
    def route(self, xs: Float[Array, "m b *rest"], train: bool) -> Float[Array, "n b *rest"]:
        """Eq. 5 with the coefficients in place of gates, ``[m b ...] -> [n b ...]``."""
        m, n = len(xs), self.num_outputs
        coefficients = self.param("coefficients", lambda key: own_weights(m, n, self.own))
        gates = jnp.broadcast_to(coefficients[:, None], (m, xs.shape[1], n))
        return routing.cross_connect(xs, gates)
