"""Discrete routing in networks: the option ``k`` of every ``-CC`` network."""

import dataclasses
from typing import Any

import flax.linen as nn

from multipath_jax.errors import UserError
from multipath_jax.layers import Choice, CrossConnect
from multipath_jax.models.multipath import MultiPath

OPTIONS = ("k", *(field.name for field in dataclasses.fields(Choice)))


def discrete(network: MultiPath, k: Any = None, **choice: Any) -> MultiPath:
    """Makes the cross-connections of a network discrete.

    Args:
      network: a network whose routers are `CrossConnect`.
      k: number of paths that every active path chooses; None: soft routing.
      **choice: fields of `Choice`.

    Returns:
      The network with discrete routers.

    Raises:
      UserError: there are other options but no k, or an option has an invalid value.
    """
    if k is None and choice:
        raise UserError(f"the option {min(choice)!r} is for discrete routing; set k, too")
    if k is None:
        return network
    routers = [layer for layer in network.layers if isinstance(layer, CrossConnect)]
    most = min(router.num_outputs for router in routers)
    if isinstance(k, bool) or not (isinstance(k, int) and 1 <= k <= most):
        raise UserError(f"k={k!r}: must be an integer from 1 to {most}, the number of paths")
    try:
        how = {"k": k, "choice": Choice(**choice)}
    except (TypeError, ValueError) as error:
        raise UserError(f"discrete routing: {error}") from error

    def chosen(layer: nn.Module) -> nn.Module:
        return layer.clone(**how) if isinstance(layer, CrossConnect) else layer

    return network.clone(layers=tuple(map(chosen, network.layers)))
