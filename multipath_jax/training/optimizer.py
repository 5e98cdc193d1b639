"""The optimizer of a config: SGD (Section 6.2), or any of optax by name; rates by layer."""

import fnmatch
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree
from ml_collections import ConfigDict

from multipath_jax.config.keys import default_config, parse_options
from multipath_jax.errors import UserError
from multipath_jax.models.adapter import layers_of_nnx
from multipath_jax.utils.names import nearest


def make_optimizer(
    config: ConfigDict, learning_rate: optax.Schedule
) -> optax.GradientTransformation:
    """Makes the optimizer that a config describes, with weight decay.

    SGD has momentum (Section 6.2) or Nesterov momentum. Its weight decay is added to the gradient
    before the momentum (an L2 penalty). Optimizers with an argument ``weight_decay``, such as
    AdamW, use their own weight decay; the others use that of SGD.

    Args:
      config: the section ``optimizer`` of a config.
      learning_rate: the learning rate schedule.

    Returns:
      An optax transformation.

    Raises:
      UserError: optax has no optimizer of that name, or it does not accept these options.
    """
    mask = partial(is_decayed, without=config.no_decay)
    _check_momentum(config)
    if config.name == "sgd":
        momentum = {"momentum": config.momentum or None, "nesterov": config.nesterov}
        factory, options = optax.sgd, momentum
    else:
        factory, options = _factory(config.name), {}
    known = inspect.signature(factory).parameters
    own_decay = "weight_decay" in known
    if own_decay:
        options["weight_decay"] = config.weight_decay
        options |= {key: mask for key in ("mask", "weight_decay_mask") if key in known}
    options |= parse_options("optimizer.options", config.options)
    if unknown := options.keys() - known.keys():
        name = min(unknown)
        raise UserError(
            f"optimizer.options: {config.name} has no option {name!r}; "
            f"the nearest is {nearest(name, known)!r}"
        )
    try:
        found = factory(learning_rate, **options)
    except (TypeError, ValueError) as error:
        raise UserError(f"optimizer.name={config.name} fails: {error}") from error
    if own_decay or not config.weight_decay:
        return found
    return optax.chain(optax.add_decayed_weights(config.weight_decay, mask=mask), found)


def _check_momentum(config: ConfigDict) -> None:
    """Raises UserError if the momentum of SGD is set for another optimizer."""
    default = default_config().optimizer
    for key in ("momentum", "nesterov"):
        if config.name != "sgd" and config[key] != default[key]:
            raise UserError(
                f"optimizer.{key}={config[key]} is of sgd, and has no effect with "
                f"optimizer.name={config.name}; use optimizer.{key}={default[key]}"
            )


def _factory(name: str) -> Callable[..., Any]:
    """The function of optax, or of `optax.contrib`, that makes the optimizer."""
    modules = (optax, optax.contrib)
    for module in modules:
        if _is_optimizer(getattr(module, name, None)):
            return getattr(module, name)
    if any(_is_transformation(getattr(module, name, None)) for module in modules):
        raise UserError(
            f"optimizer.name={name} cannot be used by name, as its first argument is not "
            "learning_rate; pass it as Trainer(optimizer=...) in Python"
        )
    known = [
        key for module in modules for key in dir(module) if _is_optimizer(getattr(module, key))
    ]
    raise UserError(
        f"optax has no optimizer {name!r} (optimizer.name); the nearest is {nearest(name, known)!r}"
    )


def _is_optimizer(candidate: Any) -> bool:
    """Whether an object is a function whose first argument is ``learning_rate``."""
    if not inspect.isfunction(candidate):
        return False
    return next(iter(inspect.signature(candidate).parameters), None) == "learning_rate"


def _is_transformation(candidate: Any) -> bool:
    """Whether an object is a function that returns an optax transformation."""
    if not inspect.isfunction(candidate):
        return False
    returned = inspect.signature(candidate).return_annotation
    return returned in (optax.GradientTransformation, optax.GradientTransformationExtraArgs)


def is_decayed(params: PyTree, without: str) -> PyTree:
    """A mask of the parameters to which weight decay applies.

    Args:
      params: the parameters of a network.
      without: patterns for parameters without weight decay, as in `matching`.

    Returns:
      A tree of bools.
    """
    return jax.tree.map(lambda found: not found, matching(params, without))


def matching(params: PyTree, patterns: str) -> PyTree:
    """A mask of the parameters that match patterns.

    Args:
      params: the parameters of a network.
      patterns: glob patterns, separated by commas. Each is compared with the path of a parameter,
        such as ``router_1/gate/w1``, with the beginnings of that path and with its last part.

    Returns:
      A tree of bools.
    """
    wanted = [pattern.strip() for pattern in patterns.split(",")]

    def matches(path: tuple, _: Any) -> bool:
        names = [str(getattr(key, "key", key)) for key in path]
        beginnings = ("/".join(names[: n + 1]) for n in range(len(names)))
        compared = (*beginnings, names[-1])
        return any(fnmatch.fnmatchcase(n, p) for n in compared for p in wanted)

    return jax.tree_util.tree_map_with_path(matches, params)


# --- Rates by layer ------------------------------------------------------------------------------


class ByLayerState(NamedTuple):
    """State of `scale_by_layer`: the number of updates."""

    count: Int[Array, ""]


def scale_by_layer(
    factors: PyTree, is_head: PyTree, head_first: int
) -> optax.GradientTransformation:
    """Multiplies the updates of an optimizer by a factor for each parameter.

    It comes after the optimizer, whose moments follow the gradients of all parameters, also of
    those that do not change yet.

    Args:
      factors: a tree of numbers; 0 for parameters that are not trained.
      is_head: a tree of bools.
      head_first: number of updates in which only the head changes.

    Returns:
      An optax transformation.
    """

    def init(params: PyTree) -> ByLayerState:
        return ByLayerState(jnp.zeros((), jnp.int32))

    def update(
        updates: PyTree, state: ByLayerState, params: PyTree = None
    ) -> tuple[PyTree, ByLayerState]:
        body = state.count >= head_first
        scaled = jax.tree.map(
            lambda update, factor, head: update * (factor if head else factor * body),
            updates,
            factors,
            is_head,
        )
        return scaled, ByLayerState(state.count + 1)

    return optax.GradientTransformation(init, update)


def rates_by_layer(
    config: ConfigDict, head_first: int, params: dict[str, PyTree]
) -> optax.GradientTransformation:
    """The factors of the learning rate that a config describes.

    Args:
      config: the section ``finetune`` of a config.
      head_first: number of steps in which only the head is trained.
      params: the network's parameters, or their shapes, by layer in the order of the layers
        (`params_in_order`).

    Returns:
      An optax transformation that comes after the optimizer.

    Raises:
      UserError: a pattern matches no parameter, or none is left to train, at first or at all.
    """
    for key in ("head", "frozen"):
        _check_patterns(f"finetune.{key}", config[key], params)
    is_head, frozen = matching(params, head_of(config, params)), matching(params, config.frozen)
    if all(jax.tree.leaves(frozen)):
        raise UserError(f"finetune.frozen={config.frozen} leaves no parameter to train")
    trained = jax.tree.map(lambda head, no: head and not no, is_head, frozen)
    if head_first and not any(jax.tree.leaves(trained)):
        raise UserError(
            f"finetune.head_first trains only {head_of(config, params)}, which "
            f"finetune.frozen={config.frozen} freezes; remove one of them"
        )
    rates = {name: config.layer_decay**after for after, name in enumerate(reversed(list(params)))}
    factors = {
        name: jax.tree.map(lambda found, rate=rates[name]: 0.0 if found else rate, frozen[name])
        for name in params
    }
    return scale_by_layer(factors, is_head, head_first)


def head_of(config: ConfigDict, params: dict[str, PyTree]) -> str:
    """The patterns of the head's parameters: ``config.head``, else the last layer."""
    return config.head or next(reversed(params))


def _check_patterns(key: str, patterns: str, params: dict[str, PyTree]) -> None:
    for pattern in filter(None, patterns.split(",")):
        if not any(jax.tree.leaves(matching(params, pattern))):
            raise UserError(
                f"{key}: no parameter matches {pattern.strip()!r}; the layers are "
                f"{', '.join(params)}"
            )


def params_in_order(model: nn.Module, image_shape: tuple[int, int, int]) -> dict[str, PyTree]:
    """The shapes of a network's parameters by layer, in the order in which the layers are made.

    Of an NNX module, that is the order in which its attributes are assigned.

    Args:
      model: the network.
      image_shape: height, width and channels.

    Returns:
      A tree of `jax.ShapeDtypeStruct` for each layer: each module that the network itself calls.
    """
    names: list[str] = []

    def trace(key: Array, image: Array) -> PyTree:
        params = model.init(key, image, train=False)["params"]
        names.extend(params)  # here in their order; JAX sorts the keys of what it maps or returns
        return nn.meta.unbox(params)

    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    shapes = jax.eval_shape(trace, jax.random.key(0), image)
    if order := layers_of_nnx(model):  # whose parameters are sorted by name
        names = [name for name in order if name in shapes]
    return {name: shapes[name] for name in names}
