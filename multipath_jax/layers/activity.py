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
from multipath_jax.layers import sharding


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

    If a path is active for no image of a batch, the running statistics are used, and not updated.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "b *space c"]) -> Float[Array, "b *space c"]:
        """Normalizes a tensor, ``[b ... c] -> [b ... c]``."""
        active = _ACTIVE.get()
        if active is None or self.use_running_average:
            return super().__call__(x)
        size = (x.shape[-1],)
        mean = self.variable("batch_stats", "mean", jnp.zeros, size, jnp.float32)
        variance = self.variable("batch_stats", "var", jnp.ones, size, jnp.float32)
        scale = self.param("scale", self.scale_init, size, self.param_dtype)
        bias = self.param("bias", self.bias_init, size, self.param_dtype)
        initializing = self.is_initializing()  # runs on one device, and keeps the statistics
        axis_name = None if initializing else self.axis_name
        *moments, count = routing.active_moments(x, active, axis_name)
        moments = [
            jnp.where(count > 0, found, kept.value)
            for found, kept in zip(moments, (mean, variance), strict=True)
        ]
        if not initializing:
            for found, kept in zip(moments, (mean, variance), strict=True):
                moved = self.momentum * kept.value + (1 - self.momentum) * found
                kept.value = jnp.where(count > 0, moved, kept.value)

        def over_space(v):
            return jnp.expand_dims(v, range(x.ndim - 1))

        factor = lax.rsqrt(moments[1] + self.epsilon) * scale
        y = (x.astype(factor.dtype) - over_space(moments[0])) * over_space(factor)
        return (y + over_space(bias)).astype(self.dtype or x.dtype)
