"""Networks of a user's own, Linen or NNX, with the call of those of this package."""

import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn
from flax import nnx
from jaxtyping import Array, Float

from multipath_jax.errors import UserError


def adapt(model: Any) -> nn.Module:
    """The network as a Linen module that is called with ``(images, train=False)``.

    Args:
      model: a `flax.linen.Module` whose call takes images, and ``train=`` if it wants to; or a
        `flax.nnx.Module`, whose modes of training and evaluation are set before each call. An NNX
        module is taken as it is: its present parameters are those that training begins with.

    Returns:
      The same module where it has that call already, else one with the same variables.

    Raises:
      UserError: it is neither.
    """
    if isinstance(model, nnx.Module):
        return _FromNNX(_reseeded(model))
    if not isinstance(model, nn.Module):
        raise UserError(
            "model needs to be a flax.linen.Module or a flax.nnx.Module, an instance and no class, "
            f"got {model!r}"
        )
    return model if _takes_train(model) else _WithoutModes(model)


def _takes_train(model: nn.Module) -> bool:
    parameters = inspect.signature(type(model).__call__).parameters
    kinds = {parameter.kind for parameter in parameters.values()}
    return "train" in parameters or inspect.Parameter.VAR_KEYWORD in kinds


class _WithoutModes(nn.Module):
    """A network that computes the same in training and in evaluation."""

    module: nn.Module

    def setup(self):
        nn.share_scope(self, self.module)

    def __call__(self, images: Float[Array, "b h w c"], train: bool = False) -> Array:
        return self.module(images)


class _FromNNX(nn.Module):
    """An NNX module by Flax's bridge; ``make(rngs)`` gives a copy of it."""

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
    """Makes copies of a module, which draw their random numbers from the streams given."""
    keys = nnx.to_flat_state(nnx.state(model, nnx.RngKey))
    streams = sorted({key.tag for _, key in keys})

    def make(rngs: nnx.Rngs) -> nnx.Module:
        copy = nnx.clone(model)
        if "params" in rngs:  # else nothing is drawn, as in evaluation
            nnx.reseed(copy, policy="match_shape", **{name: rngs.params() for name in streams})
        return copy

    return make
