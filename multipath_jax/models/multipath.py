"""The base of all routed networks: layers in parallel paths, and routers between them."""

from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn
from jaxtyping import Array, Float

from multipath_jax.layers import ActivePaths, Execution, Parallel, Router, sharding
from multipath_jax.routing import gate_dtype


class MultiPath(nn.Module):
    """A sequence of layers, which run in parallel paths from the first router on.

    The input of the first router is one tensor (m = 1): it is the one-to-many connector of Sections
    3 and 4. The outputs of the paths are averaged at the end (Sections 3 and 4), with discrete
    routers those of the active paths (D5). Without routers, this is an ordinary feed-forward
    network.

    Attributes:
      layers: Flax modules called with ``(x, train=...)``. A `Router` is applied to all paths
        together, any other module to each path with separate parameters. The modules' names are the
        keys of the parameters.
      execution: how parallel paths run, as in `Parallel`.
    """

    layers: Sequence[nn.Module]
    execution: Execution = "unrolled"

    preserve_adopted_names: ClassVar[bool] = True  # for Flax: keep the names of the given modules

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w c"], train: bool = False
    ) -> Float[Array, "b classes"]:
        """The logits, ``[b h w c] -> [b classes]``, in float32 or float64."""
        x, parallel = images, False
        for layer in self.layers:
            if isinstance(layer, Router) and parallel:
                x = layer(x, train=train)
            elif isinstance(layer, Router):
                with sharding.replicated_inputs():
                    x = layer(x[None], train=train)
                parallel = True
            elif parallel:
                x = Parallel(layer, self.execution)(x, train=train)
            else:
                x = layer(x, train=train)
        if isinstance(x, ActivePaths):
            return x.mean()
        x = x.astype(gate_dtype(x))
        return sharding.mean_over_paths(x) if parallel else x
