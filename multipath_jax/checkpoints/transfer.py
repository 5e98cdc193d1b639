"""Starting from the weights of another run, or from those of a file."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
from etils import epath
from flax import traverse_util
from jaxtyping import PyTree
from ml_collections import ConfigDict

from multipath_jax import weights
from multipath_jax.checkpoints.store import Checkpoints, open_existing, read_existing, steps_in
from multipath_jax.checkpoints.workdir import CONFIG_FILE
from multipath_jax.config.keys import OWN, parse_options, read_config
from multipath_jax.errors import UserError
from multipath_jax.utils import filesystem, storage
from multipath_jax.weights import Comparison, Key, StateDict

PARTIAL = "--config.init_partial=True takes over what fits"


def check_source(
    workdir: epath.Path, config: ConfigDict, restart: bool = False, variables: PyTree | None = None
) -> None:
    """Raises UserError if a fresh run is to start from weights that are not there, or do not fit.

    Args:
      restart: whether the run is to be a fresh one in any case.
      variables: the network's, or their shapes; None: whether they fit is not looked at yet.
    """
    if not config.init_from or (steps_in(workdir) and not restart):
        return
    if not is_workdir(config.init_from):
        state = weights.read("init_from", config.init_from)
        if variables is not None:
            _convert(state, variables, config)
        return
    source = filesystem.path("init_from", config.init_from)
    open_existing(source).close()
    if variables is not None:
        read_existing(source, "best", partial(_compare, variables=variables, config=config))


def is_workdir(source: str) -> bool:
    """Whether a source is a run's workdir, rather than a file of weights or a folder with one."""
    kind, colon, _ = source.partition("://")
    if colon and kind not in filesystem.BUCKETS:
        return False
    return bool(steps_in(filesystem.path("init_from", source))) or not weights.is_weights(source)


def initialize_from(
    config: ConfigDict, variables: PyTree, state: StateDict | None = None
) -> tuple[PyTree, Comparison]:
    """The variables with those of ``config.init_from`` in place of their values.

    Of a workdir they are the weights of its best checkpoint. The last layer stays as it is where
    the source has another number of classes.

    Args:
      state: what the source has, if it is a file that was read already.

    Raises:
      UserError: the workdir has no checkpoint, or the file cannot be read; it lacks arrays of the
        network, has them of another shape, or has others too (a file), and ``config.init_partial``
        does not allow that; it has none of them; or the same arrays would compute something else.
    """
    if state is None and is_workdir(config.init_from):
        restored, found = _from_workdir(config, variables)
    else:
        state = state or weights.read("init_from", config.init_from)
        restored, found = _convert(state, variables, config)
    own = traverse_util.flatten_dict(variables)
    values = {key: _like(own[key], value) for key, value in restored.items()}
    return traverse_util.unflatten_dict(own | values), found


def _like(own: Any, value: Any) -> jax.Array:
    """The value, of the type of ours and lying where ours does."""
    value = value.astype(own.dtype)
    if isinstance(value, jax.Array):
        return value
    return jax.make_array_from_callback(value.shape, own.sharding, value.__getitem__)


def _from_workdir(config: ConfigDict, variables: PyTree) -> tuple[dict[Key, Any], Comparison]:
    own = traverse_util.flatten_dict(variables)

    def read(source: Checkpoints, step: int) -> tuple[Comparison, dict]:
        found = _compare(source, step, variables, config)
        saved = source.shapes(step)
        like = {
            key: jax.ShapeDtypeStruct(own[key].shape, saved[key].dtype, sharding=own[key].sharding)
            for key in found.fitting
        }
        tree = source.restore_weights(traverse_util.unflatten_dict(like), step)
        return found, traverse_util.flatten_dict(tree)

    source = filesystem.path("init_from", config.init_from)
    _, (found, restored) = read_existing(source, "best", read)
    return restored, found


def _compare(source: Checkpoints, step: int, variables: PyTree, config: ConfigDict) -> Comparison:
    """The arrays of a network and those of a checkpoint. Raises UserError as `initialize_from`."""
    own, saved = traverse_util.flatten_dict(variables), source.shapes(step)
    found = weights.compare(
        {key: value.shape for key, value in own.items()},
        {key: "/".join(key) for key in own},
        {"/".join(key): tuple(value.shape) for key, value in saved.items()},
    )
    path = filesystem.path("init_from", config.init_from) / CONFIG_FILE
    if storage.exists(path):
        stored = read_config(path).model
        _check_options(parse_options("model.options", stored.options), config)
    found.check(_named(config), PARTIAL, config.init_partial)
    return found


def _convert(
    state: StateDict, variables: PyTree, config: ConfigDict
) -> tuple[dict[Key, Any], Comparison]:
    """The arrays of a file that a network has. Raises UserError as `initialize_from`."""
    own = traverse_util.flatten_dict(variables)
    found = weights.convert(state, {key: value.shape for key, value in own.items()})
    _check_options(found.options, config)
    found.compared.check(_named(config), PARTIAL, config.init_partial, whole=True)
    return found.arrays, found.compared


def _named(config: ConfigDict) -> str:
    return f"init_from={config.init_from}"


def _check_options(there: Mapping[str, Any], config: ConfigDict) -> None:
    """Raises UserError if the network would compute something else with arrays that fit.

    Args:
      there: options of the source's network.
    """
    if config.model.name.startswith(OWN):
        return
    here = parse_options("model.options", config.model.options)
    for name, value in there.items():
        own = here.get(name, weights.TELLING[name]) if name in weights.TELLING else value
        if own != value and not (config.init_partial and own == weights.TELLING[name]):
            raise UserError(
                f"{_named(config)} is of a network with {name}={value}, not {name}={own}, which "
                f"computes something else; --config.model.options={name}={value} makes it the same"
            )
