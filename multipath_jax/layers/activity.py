"""Which paths are active for which images: what discrete routers decide (`CrossConnect(k=...)`).

The decision travels with the tensors, as `ActivePaths`, from a router through `Parallel` to the
next router or to the final mean. Within a path, `BatchNorm` takes its statistics over the images
that `only` names. Without a discrete router none of this does anything.
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
from multipath_jax.layers import spread


@flax.struct.dataclass
class ActivePaths:
    """m parallel tensors, each for some images only.

    Attributes:
      tensors: zero for the images for which their path is inactive.
      active: for which it is not. Every image has a path that is active.
    """

    tensors: Float[Array, "m b *rest"]
    active: Bool[Array, "m b"]

    def mean(self) -> Float[Array, "b *rest"]:
        """D5: the mean over the active paths, also those on other devices; at least float32."""
        return spread.ratio(*routing.total_of_active(self.tensors, self.active))


_ACTIVE = contextvars.ContextVar("active", default=None)


@contextlib.contextmanager
def only(active: Bool[Array, " b"] | None) -> Iterator[None]:
    """Traces the layers of one path, which is active for these images; None: for all."""
    token = _ACTIVE.set(active)
    try:
        yield
    finally:
        _ACTIVE.reset(token)


class BatchNorm(nn.BatchNorm):
    """Flax's BatchNorm; in a path that is active for some images, by the statistics of those.

    A batch without any such image is normalized by the running statistics, and leaves them alone.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "b *space c"]) -> Float[Array, "b *space c"]:
        active = _ACTIVE.get()
        if active is None or self.use_running_average:
            return super().__call__(x)
        size = (x.shape[-1],)
        mean = self.variable("batch_stats", "mean", jnp.zeros, size, jnp.float32)
        variance = self.variable("batch_stats", "var", jnp.ones, size, jnp.float32)
        scale = self.param("scale", self.scale_init, size, self.param_dtype)
        bias = self.param("bias", self.bias_init, size, self.param_dtype)
        initializing = self.is_initializing()  # on one device, and the statistics stay as they are
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
