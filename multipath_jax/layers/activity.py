"""The active paths of every image behind discrete routers (`CrossConnect(k=...)`).

Routers return the tensors with a mask, as `ActivePaths`, which `Parallel`, the next router and the
mean at the end of a network take. Within a path, `BatchNorm` computes its statistics over the
images in the context `only`. Without discrete routers, nothing here has an effect.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import flax
import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from multipath_jax import routing
from multipath_jax.layers import own_statistics, sharding


@flax.struct.dataclass
class ActivePaths:
    """m parallel tensors, of which each is used for some of the images.

    Attributes:
      tensors: the tensors, ``[m b ...]``; zero where a path is inactive for an image.
      active: whether a path is active for an image, ``[m b]``. Every image has an active path.
    """

    tensors: Float[Array, "m b *rest"]
    active: Bool[Array, "m b"]

    def mean(self) -> Float[Array, "b *rest"]:
        """The mean over the active paths (D5), including those on other devices.

        Returns:
          ``[b ...]``, in float32 or float64.
        """
        return sharding.ratio_over_paths(*routing.total_of_active(self.tensors, self.active))


_ACTIVE = contextvars.ContextVar("active", default=None)


@contextlib.contextmanager
def only(active: Bool[Array, " b"] | None) -> Iterator[None]:
    """Context in which the layers of one path are traced.

    Args:
      active: whether the path is active for an image; None: for all images.
    """
    token = _ACTIVE.set(active)
    try:
        yield
    finally:
        _ACTIVE.reset(token)


class BatchNorm(nn.BatchNorm):
    """Flax's BatchNorm; behind a discrete router, with the statistics of the active images (D6).

    In `OwnStatistics`, images are normalized by the statistics of those of the same data set. If a
    path is active for no image of a batch (of a data set), the running statistics are used, and not
    updated.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "b *space c"]) -> Float[Array, "b *space c"]:
        """Normalizes a tensor, ``[b ... c] -> [b ... c]``."""
        active, sets = _ACTIVE.get(), own_statistics.current_sets()
        if sets is None and (active is None or self.use_running_average):
            return super().__call__(x)
        collection, size = "batch_stats", (x.shape[-1],)
        where = jnp.ones(len(x), bool) if active is None else active
        if sets is not None:
            collection, size = own_statistics.COLLECTION, (sets.count, *size)
            where = sets.members() & where[None]
        mean = self.variable(collection, "mean", jnp.zeros, size, jnp.float32)
        variance = self.variable(collection, "var", jnp.ones, size, jnp.float32)
        scale = self.param("scale", self.scale_init, size[-1:], self.param_dtype)
        bias = self.param("bias", self.bias_init, size[-1:], self.param_dtype)
        moments = [mean.value, variance.value]
        if not self.use_running_average:
            moments = self._of_batch(x, where, (mean, variance))
        if sets is not None:
            moments = [found[sets.numbers] for found in moments]

        def over_space(v):  # [c] or [b c]
            return jnp.expand_dims(v, range(v.ndim - 1, x.ndim - 1))

        factor = over_space(lax.rsqrt(moments[1] + self.epsilon)) * over_space(scale)
        y = (x.astype(factor.dtype) - over_space(moments[0])) * factor
        return (y + over_space(bias)).astype(self.dtype or x.dtype)

    def _of_batch(
        self, x: Array, where: Bool[Array, "*d b"], running: tuple[nn.Variable, nn.Variable]
    ) -> list[Float[Array, "*d c"]]:
        """The mean and variance of a batch, with which the running ones are updated."""
        initializing = self.is_initializing()  # runs on one device, and keeps the statistics
        axis_name = None if initializing else self.axis_name
        *moments, count = routing.active_moments(x, where, axis_name)
        seen, used = jnp.expand_dims(count > 0, -1), []
        for found, kept in zip(moments, running, strict=True):
            used.append(jnp.where(seen, found, kept.value))
            if not initializing:
                moved = self.momentum * kept.value + (1 - self.momentum) * found
                kept.value = jnp.where(seen, moved, kept.value)
        return used
