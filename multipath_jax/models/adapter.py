"""Adapts a user's Linen or NNX module to the call signature of this package's networks."""

import inspect
from collections.abc import Callable, Mapping
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
        kind = _FromNNXWithLoss if hasattr(model, "loss") else _FromNNX
        return kind(_reseeded(model), tuple(vars(model)))
    if not isinstance(model, nn.Module):
        raise UserError(
            "model must be an instance (not a class) of flax.linen.Module or flax.nnx.Module, "
            f"got {model!r}"
        )
    if _takes_train(model):
        return model
    return (_WithoutModesWithLoss if hasattr(model, "loss") else _WithoutModes)(model)


def layers_of_nnx(model: nn.Module) -> tuple[str, ...]:
    """The names of the attributes of an adapted NNX module, in order; empty for Linen modules."""
    return model.layers if isinstance(model, _FromNNX) else ()


def _takes_train(model: nn.Module) -> bool:
    if isinstance(model, nn.Sequential):  # passes its arguments to the first layer
        return False
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


class _WithoutModesWithLoss(_WithoutModes):
    """Also has the network's method ``loss``."""

    def loss(self, images: Float[Array, "b h w c"], labels: Array, train: bool) -> Any:
        return self.module.loss(images, labels, train=train)


class _FromNNX(nn.Module):
    """Wraps an NNX module by Flax's bridge.

    Attributes:
      make: a function from `nnx.Rngs` to a copy of the module.
      layers: the names of the module's attributes, in the order of their assignment.
    """

    make: Callable[..., nnx.Module]
    layers: tuple[str, ...]

    def setup(self):
        # The elements of `nnx.List` have numbers as keys, which neither Linen's paths nor
        # checkpoints support.
        bridge = nn.map_variables(
            nnx.bridge.ToLinen,
            mapped_collections=True,
            trans_in_fn=_with_numbers,
            trans_out_fn=_with_strings,
            init=self.is_initializing(),
            mutable=True,
        )
        self.network = bridge(self.make)
        nn.share_scope(self, self.network)

    def __call__(self, images: Float[Array, "b h w c"], train: bool = False) -> Array:
        def call(module: nnx.Module, images: Array) -> Array:
            module.train() if train else module.eval()
            return module(images)

        return self.network(images, nnx_method=call)


class _FromNNXWithLoss(_FromNNX):
    """Also has the module's method ``loss``."""

    def loss(self, images: Float[Array, "b h w c"], labels: Array, train: bool) -> Any:
        def call(module: nnx.Module, images: Array, labels: Array) -> Any:
            module.train() if train else module.eval()
            return module.loss(images, labels, train=train)

        return self.network(images, labels, nnx_method=call)


def _with_strings(tree: Any) -> Any:
    """Replaces keys that are numbers by strings."""
    if not isinstance(tree, Mapping):
        return tree
    return {str(key): _with_strings(value) for key, value in tree.items()}


def _with_numbers(tree: Any) -> Any:
    """Replaces keys that are the strings of numbers by numbers."""
    if not isinstance(tree, Mapping):
        return tree
    return {
        int(key) if key.isdecimal() else key: _with_numbers(value) for key, value in tree.items()
    }


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
