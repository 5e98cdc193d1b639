"""The optimizer of a config: SGD (Section 6.2), or any optimizer of optax by name."""

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
        raise UserError(f"optimizer.name={config.name} fails: {error}") from error
    if own_decay or not config.weight_decay:
        return found
    return optax.chain(optax.add_decayed_weights(config.weight_decay, mask=mask), found)


def _factory(name: str) -> Callable[..., Any]:
    """The function of optax, or of `optax.contrib`, that makes the optimizer."""
    modules = (optax, optax.contrib)
    for module in modules:
        if _is_optimizer(getattr(module, name, None)):
            return getattr(module, name)
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


def is_decayed(params: PyTree, without: str) -> PyTree:
    """A mask of the parameters to which weight decay applies.

    Args:
      params: the parameters of a network.
      without: glob patterns for parameters without weight decay, separated by commas. Each is
        matched against the path of a parameter, such as ``router_1/gate/w1``, and its last part.

    Returns:
      A tree of bools.
    """
    patterns = [pattern.strip() for pattern in without.split(",")]

    def decayed(path: tuple, _: Any) -> bool:
        names = [str(getattr(key, "key", key)) for key in path]
        compared = ("/".join(names), names[-1])
        return not any(fnmatch.fnmatchcase(n, p) for n in compared for p in patterns)

    return jax.tree_util.tree_map_with_path(decayed, params)
