"""The optimizer of a config: SGD (Section 6.2), or any other of optax's by its name."""

import fnmatch
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import optax
from jaxtyping import PyTree
from ml_collections import ConfigDict

from multipath_jax.config.keys import parse_options
from multipath_jax.errors import UserError
from multipath_jax.utils.names import nearest


def make_optimizer(
    config: ConfigDict, learning_rate: optax.Schedule
) -> optax.GradientTransformation:
    """The optimizer that ``config.optimizer`` describes, with weight decay.

    SGD has momentum (Section 6.2), or Nesterov's; its decay is added to the gradient before the
    momentum: an L2 penalty, as in the paper's day. Others that take ``weight_decay`` decay as they
    do themselves, such as AdamW; the rest as SGD does.

    Args:
      config: the section ``optimizer`` of a config.
      learning_rate: by step.

    Raises:
      UserError: optax has no optimizer of that name, or none with these options.
    """
    mask = partial(is_decayed, without=config.no_decay)
    if config.name == "sgd":
        momentum = {"momentum": config.momentum or None, "nesterov": config.nesterov}
        factory, options = optax.sgd, momentum
    else:
        factory, options = _factory(config.name), {}
    options |= parse_options("optimizer.options", config.options)
    known = inspect.signature(factory).parameters
    own_decay = "weight_decay" in known and "weight_decay" not in options
    if own_decay:
        options["weight_decay"] = config.weight_decay
        options |= {key: mask for key in ("mask", "weight_decay_mask") if key in known}
    if unknown := options.keys() - known.keys():
        name = min(unknown)
        raise UserError(
            f"optimizer.options: {config.name} has no option {name!r}; "
            f"the nearest is {nearest(name, known)!r}"
        )
    try:
        found = factory(learning_rate, **options)
    except (TypeError, ValueError) as error:
        raise UserError(f"optimizer.name={config.name} cannot be made: {error}") from error
    if own_decay or not config.weight_decay:
        return found
    return optax.chain(optax.add_decayed_weights(config.weight_decay, mask=mask), found)


def _factory(name: str) -> Callable[..., Any]:
    """The function of optax, or of its ``contrib``, that makes the optimizer of that name."""
    modules = (optax, optax.contrib)
    for module in modules:
        if _is_optimizer(getattr(module, name, None)):
            return getattr(module, name)
    known = [
        key for module in modules for key in dir(module) if _is_optimizer(getattr(module, key))
    ]
    raise UserError(
        f"optimizer.name={name!r} is no optimizer of optax; the nearest is {nearest(name, known)!r}"
    )


def _is_optimizer(candidate: Any) -> bool:
    """Whether it is a function whose first argument is the learning rate."""
    if not inspect.isfunction(candidate):
        return False
    return next(iter(inspect.signature(candidate).parameters), None) == "learning_rate"


def is_decayed(params: PyTree, without: str) -> PyTree:
    """For every parameter, whether weight decay applies.

    Args:
      params: the network's.
      without: patterns, separated by commas, of those that are not decayed; each is compared to the
        path of a parameter, such as ``router_1/gate/w1``, and to its last name.
    """
    patterns = [pattern.strip() for pattern in without.split(",")]

    def decayed(path: tuple, _: Any) -> bool:
        names = [str(getattr(key, "key", key)) for key in path]
        compared = ("/".join(names), names[-1])
        return not any(fnmatch.fnmatchcase(n, p) for n in compared for p in patterns)

    return jax.tree_util.tree_map_with_path(decayed, params)
