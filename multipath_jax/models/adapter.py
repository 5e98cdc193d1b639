"""Adapts a user's Linen or NNX module to the call signature of this package's networks."""

import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn
from flax import nnx
from jaxtyping import Array, Float

from multipath_jax.errors import UserError


def adapt(model: Any) -> nn.Module:
    """Wraps a network as a Linen module that is called with ``(images, train=False)``.

    Args:
      model: a `flax.linen.Module` whose call takes images and, optionally, ``train=``; or a
        `flax.nnx.Module`, whose ``train()`` or ``eval()`` is called before each call. Training of
        an NNX module starts from its current parameters.

    Returns:
      ``model`` itself if its call takes ``train=``, else a module with the same variables.

    Raises:
      UserError: ``model`` is neither.
    """
    if isinstance(model, nnx.Module):
        return _FromNNX(_reseeded(model))
    if not isinstance(model, nn.Module):
        raise UserError(
            "model must be an instance (not a class) of flax.linen.Module or flax.nnx.Module, "
            f"got {model!r}"
        )
    return model if _takes_train(model) else _WithoutModes(model)


def _takes_train(model: nn.Module) -> bool:
    parameters = inspect.signature(type(model).__call__).parameters
    kinds = {parameter.kind for parameter in parameters.values()}
    return "train" in parameters or inspect.Parameter.VAR_KEYWORD in kinds


class _WithoutModes(nn.Module):
    """Adds a ``train`` argument to a network that has none."""

    module: nn.Module

    def setup(self):
        nn.share_scope(self, self.module)

    def __call__(self, images: Float[Array, "b h w c"], train: bool = False) -> Array:
        return self.module(images)


class _FromNNX(nn.Module):
    """Wraps an NNX module by Flax's bridge.

    Attributes:
      make: a function from `nnx.Rngs` to a copy of the module.
    """

    make: Callable[..., nnx.Module]

    def setup(self):
        self.network = nnx.bridge.ToLinen(self.make)
        nn.share_scope(self, self.network)

    def __call__(self, images: Float[Array, "b h w c"], train: bool = False) -> Array:
        def call(module: nnx.Module, images: Array) -> Array:
            module.train() if train else module.eval()
            return module(images)

        return self.network(images, nnx_method=call)


def _reseeded(model: nnx.Module) -> Callable[..., nnx.Module]:
    """Makes a function that copies a module and reseeds its random streams."""
    keys = nnx.to_flat_state(nnx.state(model, nnx.RngKey))
    streams = sorted({key.tag for _, key in keys})

    def make(rngs: nnx.Rngs) -> nnx.Module:
        copy = nnx.clone(model)
        if "params" in rngs:  # absent in evaluation, which uses no random numbers
            nnx.reseed(copy, policy="match_shape", **{name: rngs.params() for name in streams})
        return copy

    return make
