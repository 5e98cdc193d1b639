"""The shape that all routed networks share: stages of layers, and routers between them."""

from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn
from jaxtyping import Array, Float

from multipath_jax.layers import ActivePaths, Execution, Parallel, Router, spread
from multipath_jax.routing import gate_dtype


class MultiPath(nn.Module):
    """Runs ``layers`` in order: plain ones before the first router, in parallel paths after it.

    The first router opens the paths: it sees one tensor (m = 1), as the one-to-many connectors of
    Sections 3 and 4 do. The outputs of the last layer's paths are averaged (Sections 3 and 4),
    those of the active ones where a router is discrete (D5).
    Without any router this is an ordinary feed-forward network.

    Attributes:
      layers: Flax modules called with ``(x, train=...)``; a `Router` is given all paths at once,
        any other module runs on every path with parameters of its own. Their names are the keys
        of the parameters.
      execution: how parallel paths run, as in `Parallel`.
    """

    layers: Sequence[nn.Module]
    execution: Execution = "unrolled"

    preserve_adopted_names: ClassVar[bool] = True  # Flax: keep the names that the layers came with

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w c"], train: bool = False
    ) -> Float[Array, "b classes"]:
        """Images -> logits."""
        x, parallel = images, False
        for layer in self.layers:
            if isinstance(layer, Router) and parallel:
                x = layer(x, train=train)
            elif isinstance(layer, Router):
                with spread.shared_inputs():
                    x = layer(x[None], train=train)
                parallel = True
            elif parallel:
                x = Parallel(layer, self.execution)(x, train=train)
            else:
                x = layer(x, train=train)
        if isinstance(x, ActivePaths):
            return x.mean()
        x = x.astype(gate_dtype(x))
        return spread.mean(x) if parallel else x
