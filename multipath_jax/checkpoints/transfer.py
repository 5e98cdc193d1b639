"""Initial weights from another run or from a file, optionally for a network with more paths."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from etils import epath
from flax import traverse_util
from jaxtyping import PyTree
from ml_collections import ConfigDict

from multipath_jax import weights
from multipath_jax.checkpoints.existing import open_existing, read_existing, steps_in
from multipath_jax.checkpoints.store import Checkpoints
from multipath_jax.checkpoints.workdir import CONFIG_FILE, DATASET_FILE
from multipath_jax.config.keys import OWN, parse_options, read_config
from multipath_jax.data.description import read_description
from multipath_jax.errors import UserError
from multipath_jax.models import family_of
from multipath_jax.parallel.devices import replicated_like
from multipath_jax.utils import filesystem, storage
from multipath_jax.weights import Comparison, Growth, Key, StateDict
from multipath_jax.weights.files import IN_FOLDER, PYTORCH, SAFETENSORS

PARTIAL = "--config.init_partial=True takes over what fits"


class Source(NamedTuple):
    """The arrays of a source, for a network.

    Attributes:
      found: the comparison of the arrays with those of the network.
      growth: the conversion to a network with more paths; None if it has the same paths.
      arrays: the arrays that fit, by key; empty until they are read.
    """

    found: Comparison
    growth: Growth | None
    arrays: dict[Key, Any]


def check_source(
    workdir: epath.Path,
    config: ConfigDict,
    restart: bool = False,
    variables: PyTree | None = None,
    model: nn.Module | None = None,
) -> None:
    """Checks that the weights of ``config.init_from`` exist and fit, if a run will need them.

    Args:
      workdir: the workdir of the run; if it has checkpoints, the weights are not needed.
      config: the config of the run.
      restart: whether the run starts from scratch.
      variables: the variables of the network, or their shapes; None: the fit is not checked.
      model: the network; None: a source with fewer paths does not fit.

    Raises:
      UserError: the weights cannot be read, or do not fit.
    """
    if not config.init_from or (steps_in(workdir) and not restart):
        return
    if not is_workdir(config.init_from):
        state = weights.read("init_from", config.init_from)
        if variables is not None:
            _convert(state, variables, config, model)
        return
    source = filesystem.path("init_from", config.init_from)
    open_existing(source).close()
    if variables is not None:
        compare = partial(_compare, variables=variables, config=config, model=model)
        read_existing(source, "best", compare)


def is_workdir(source: str) -> bool:
    """Whether a source is the workdir of a run, and not a file of weights or a folder with one.

    Raises:
      UserError: the source is none of them, or cannot be read.
    """
    kind, colon, _ = source.partition("://")
    if colon and kind not in filesystem.BUCKETS:
        return False
    workdir = filesystem.path("init_from", source)
    if steps_in(workdir):
        return True
    if weights.is_weights(source):
        return False
    try:
        open_existing(workdir).close()
    except UserError as error:
        kinds = ", ".join((SAFETENSORS, *PYTORCH))
        raise UserError(
            f"{error}, and it is neither a file of weights ({kinds}) nor a folder with one "
            f"({' or '.join(IN_FOLDER)})"
        ) from error
    return True


def initialize_from(
    config: ConfigDict,
    variables: PyTree,
    state: StateDict | None = None,
    model: nn.Module | None = None,
) -> tuple[PyTree, Comparison]:
    """Replaces the variables of a network by those of ``config.init_from``.

    For a workdir, these are the weights of its best checkpoint. The last layer is not replaced if
    the source has another number of classes. A source with fewer paths is grown (`weights.Growth`).

    Args:
      config: the config of the run.
      variables: the initial variables of the network.
      state: the content of the source, if it is a file that has been read already.
      model: as in `check_source`.

    Returns:
      The variables, and the comparison of the source with the network.

    Raises:
      UserError: the workdir has no checkpoint, or the file cannot be read; arrays of the network
        are missing or have another shape, or a file has additional ones, and
        ``config.init_partial`` is not set; no array fits; or the network would compute something
        else with the same arrays.
    """
    if state is None and is_workdir(config.init_from):
        source = _from_workdir(config, variables, model)
    else:
        state = state or weights.read("init_from", config.init_from)
        source = _convert(state, variables, config, model)
    own = traverse_util.flatten_dict(variables)
    if source.growth:
        grow = partial(source.growth.grow, noise=config.growth_noise)
        where = {key: value.sharding for key, value in own.items()}
        own = jax.jit(grow, out_shardings=where)(source.arrays, own)
    else:
        own |= {key: _like(own[key], value) for key, value in source.arrays.items()}
    return traverse_util.unflatten_dict(own), source.found


def _like(own: Any, value: Any) -> jax.Array:
    """The value with the type and sharding of ``own``."""
    value = value.astype(own.dtype)
    if isinstance(value, jax.Array):
        return value
    return jax.make_array_from_callback(value.shape, own.sharding, value.__getitem__)


def _from_workdir(config: ConfigDict, variables: PyTree, model: nn.Module | None) -> Source:
    own = traverse_util.flatten_dict(variables)
    everywhere = replicated_like(next(iter(own.values())).sharding)

    def read(checkpoints: Checkpoints, step: int) -> Source:
        source = _compare(checkpoints, step, variables, config, model)
        saved = checkpoints.shapes(step)
        like = {
            key: jax.ShapeDtypeStruct(
                saved[key].shape,
                saved[key].dtype,
                sharding=everywhere if source.growth else own[key].sharding,
            )
            for key in source.found.fitting
        }
        tree = checkpoints.restore_weights(traverse_util.unflatten_dict(like), step)
        return source._replace(arrays=traverse_util.flatten_dict(tree))

    path = filesystem.path("init_from", config.init_from)
    return read_existing(path, "best", read)[1]


def _compare(
    checkpoints: Checkpoints,
    step: int,
    variables: PyTree,
    config: ConfigDict,
    model: nn.Module | None,
) -> Source:
    """Compares a network with a checkpoint. Raises UserError as `initialize_from`."""
    own = _shapes(variables)
    there = {key: tuple(value.shape) for key, value in checkpoints.shapes(step).items()}
    growth = weights.find_growth(model, own, there, _named(config))
    expected = growth.expected if growth else own
    found = weights.compare(
        expected,
        {key: "/".join(key) for key in expected},
        {"/".join(key): shape for key, shape in there.items()},
    )
    source = filesystem.path("init_from", config.init_from)
    if storage.exists(source / CONFIG_FILE):
        stored = read_config(source / CONFIG_FILE).model
        _check_options(parse_options("model.options", stored.options), config)
    if storage.exists(source / DATASET_FILE):
        data = read_description(source / DATASET_FILE)
        if not data.parts:
            mean, std = map(tuple, (data.mean.tolist(), data.std.tolist()))
            names = tuple(data.class_names)
            found = dataclasses.replace(found, mean=mean, std=std, class_names=names)
    return _checked(Source(found, growth, {}), config)


def _convert(
    state: StateDict, variables: PyTree, config: ConfigDict, model: nn.Module | None
) -> Source:
    """Compares a network with a file. Raises UserError as `initialize_from`."""
    own = _shapes(variables)
    there = {tuple(name.split("/")): array.shape for name, array in state.arrays.items()}
    growth = weights.find_growth(model, own, there, _named(config))
    found = weights.convert(state, growth.expected if growth else own)
    options = found.options
    if state.options is None:  # inferred from the names of the arrays, so a given option decides
        given = parse_options("model.options", config.model.options)
        options = {name: value for name, value in options.items() if name not in given}
    _check_options(options, config)
    compared = dataclasses.replace(
        found.compared, mean=state.mean, std=state.std, class_names=tuple(state.class_names)
    )
    return _checked(Source(compared, growth, found.arrays), config, whole=True)


def _checked(source: Source, config: ConfigDict, whole: bool = False) -> Source:
    """The source, after `Comparison.check`."""
    found, growth, name = source.found, source.growth, _named(config)
    if growth:
        steps = f"growing from {weights.counted(growth.paths)} to {growth.most}"
        found = dataclasses.replace(found, growth=f"{steps}, {_function(config)}")
        name = f"{name} ({steps})"
    found.check(name, PARTIAL, config.init_partial, whole=whole or growth is not None)
    return source._replace(found=found)


def _function(config: ConfigDict) -> str:
    """A phrase about the function of a grown network."""
    if not config.growth_noise:
        return "which compute the same; copies stay equal in training (growth_noise=0)"
    return (
        f"which compute the same but for noise of {config.growth_noise:g} of the deviation of "
        f"every kernel (growth_noise; seed={config.seed})"
    )


def _shapes(variables: PyTree) -> dict[Key, tuple[int, ...]]:
    return {key: value.shape for key, value in traverse_util.flatten_dict(variables).items()}


def _named(config: ConfigDict) -> str:
    return f"init_from={config.init_from}"


def _check_options(there: Mapping[str, Any], config: ConfigDict) -> None:
    """Raises UserError if the network would compute something else with the same arrays.

    Args:
      there: options of the source's network.
      config: the config of the run.
    """
    if config.model.name.startswith(OWN):
        return
    here = parse_options("model.options", config.model.options)
    known = family_of(config.model.name).overrides
    for name, value in there.items():
        if name not in known:
            continue
        own = here.get(name, weights.TELLING[name]) if name in weights.TELLING else value
        if own != value and not (config.init_partial and own == weights.TELLING[name]):
            raise UserError(
                f"{_named(config)} is of a network with {name}={value}, not {name}={own}, which "
                f"computes something else; --config.model.options={name}={value} makes it the same"
            )
