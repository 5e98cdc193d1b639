"""Networks whose cross-connections choose: any ``-CC`` network with the option ``k``."""

import dataclasses
from typing import Any

import flax.linen as nn

from multipath_jax.errors import UserError
from multipath_jax.layers import Choice, CrossConnect
from multipath_jax.models.multipath import MultiPath

OPTIONS = ("k", *(field.name for field in dataclasses.fields(Choice)))


def discrete(network: MultiPath, k: Any = None, **choice: Any) -> MultiPath:
    """The same network with discrete cross-connections.

    Args:
      network: whose routers are `CrossConnect`.
      k: the paths that every active path of an image goes on to; None: all, softly.
      **choice: fields of `Choice`.

    Raises:
      UserError: options without k, or one that cannot be.
    """
    if k is None and choice:
        raise UserError(f"the option {min(choice)!r} is one of discrete routing; give k as well")
    if k is None:
        return network
    routers = [layer for layer in network.layers if isinstance(layer, CrossConnect)]
    most = min(router.num_outputs for router in routers)
    if not (isinstance(k, int) and 1 <= k <= most):
        raise UserError(f"k={k}: an image's paths go on to 1 to {most} of {most} paths")
    try:
        how = {"k": k, "choice": Choice(**choice)}
    except (TypeError, ValueError) as error:
        raise UserError(f"discrete routing: {error}") from error

    def chosen(layer: nn.Module) -> nn.Module:
        return layer.clone(**how) if isinstance(layer, CrossConnect) else layer

    return network.clone(layers=tuple(map(chosen, network.layers)))
