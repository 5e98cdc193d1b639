"""NDDR-CNN: each path fuses the channels of all paths by a 1x1 convolution."""

from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from multipath_jax.layers.blocks import ConvStage, batch_norm
from multipath_jax.layers.paths import Execution, Parallel
from multipath_jax.layers.routers import Router
from multipath_jax.layers.stitch import own_weights


class NDDR(Router):
    """Gao et al., "NDDR-CNN" (2019), Section 3: concatenation, 1x1 convolution, BatchNorm, ReLU.

    A 1x1 convolution is a dense layer on every pixel, so the layer takes feature maps and vectors.
    The concatenation is two axes of the kernel ``[n m c f]``, path and channel. The kernel is
    initialized diagonally: output channel k is ``own`` times channel k of the same path, plus
    channel k of the other paths with equal weights that sum to ``1 - own`` (k modulo c if f > c).

    Attributes:
      features: f, number of channels of every output.
      own: initial weight of each path in its own output.
      dtype: type of the computation.
    """

    features: int = 32
    own: float = 0.9
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def route(self, xs: Float[Array, "m b *space c"], train: bool) -> Float[Array, "n b *space f"]:
        """The fused tensors, ``[m b ... c] -> [n b ... features]``."""
        kernel = self.param("kernel", self._diagonal, len(xs), xs.shape[-1])
        zeros = nn.initializers.zeros
        bias = self.param("bias", zeros, (self.num_outputs, self.features), jnp.float32)
        inputs, kernel, bias = nn.dtypes.promote_dtype(xs, kernel, bias, dtype=self.dtype)

        def fused(kernel, bias):
            y = jnp.einsum("mb...c,mcf->b...f", inputs, kernel)
            return y + lax.broadcast_to_rank(bias, y.ndim)

        ys = jax.vmap(fused)(kernel, bias)
        return nn.relu(Parallel(batch_norm(train, self.dtype))(ys))

    def _diagonal(self, key: jax.Array, m: int, c: int) -> Float[Array, "n m c f"]:
        weights = own_weights(m, self.num_outputs, self.own)
        same_channel = jnp.arange(c)[:, None] == jnp.arange(self.features)[None] % c
        return jnp.einsum("mn,cf->nmcf", weights, same_channel.astype(weights.dtype))


class NDDRShortcut(Router):
    """NDDR-CNN with shortcuts (Gao et al., 2019, Section 3.3) from all stages to the end.

    The outputs of all stages are resized to the height and width of the last one and concatenated;
    a 1x1 convolution with BatchNorm and ReLU maps them to the channels of the last one. All paths
    share this convolution: with one per path, the parameter count would not be the paper's.

    Attributes:
      layers: routers, and stages that run on every path, called in order as in `MultiPath`. The
        first is a router with ``num_outputs`` outputs; the last is a stage.
      execution: how the paths run, as in `Parallel`.
      dtype: type of the computation.
    """

    layers: Sequence[nn.Module] = ()
    execution: Execution = "unrolled"
    dtype: DTypeLike = jnp.float32

    preserve_adopted_names: ClassVar[bool] = True

    @nn.compact
    def route(self, xs: Float[Array, "m b h w c"], train: bool) -> Float[Array, "n b h2 w2 f"]:
        """``[m b h w c] -> [n b h2 w2 f]``, with the size and the channels of the last stage."""
        stages = []
        for layer in self.layers:
            routes = isinstance(layer, Router)
            xs = (layer if routes else Parallel(layer, self.execution))(xs, train=train)
            if isinstance(layer, ConvStage):
                stages.append(xs)
        resized = [jax.image.resize(x, (*xs.shape[:-1], x.shape[-1]), "linear") for x in stages]
        joined = jnp.concatenate(resized, axis=-1)
        # Applied to [m b ...], the dense layer and the BatchNorm are shared by all paths.
        he = nn.initializers.he_normal()
        ys = nn.Dense(xs.shape[-1], kernel_init=he, dtype=self.dtype, name="shortcut")(joined)
        return nn.relu(batch_norm(train, self.dtype)(ys))
