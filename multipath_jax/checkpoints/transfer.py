"""Starting from another run's weights."""

from functools import partial
from typing import NamedTuple

import jax
from etils import epath
from flax import traverse_util
from jaxtyping import PyTree
from ml_collections import ConfigDict

from multipath_jax.checkpoints.store import Checkpoints, open_existing, read_existing, steps_in
from multipath_jax.errors import UserError
from multipath_jax.utils import filesystem


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
    source = filesystem.path("init_from", config.init_from)
    open_existing(source).close()
    if variables is not None:
        read_existing(source, "best", partial(_compare, variables=variables, config=config))


class Comparison(NamedTuple):
    """The arrays of a network and those of a checkpoint.

    Attributes:
      fitting: the shapes of those that are in both, as saved, by flattened key.
      missing: the names of those that are not in the checkpoint.
      reshaped: of those that are there of another shape, with both shapes.
      extra: of those that are in the checkpoint alone.
    """

    fitting: dict[tuple[str, ...], PyTree]
    missing: list[str]
    reshaped: list[str]
    extra: list[str]


def initialize_from(config: ConfigDict, variables: PyTree) -> tuple[PyTree, Comparison]:
    """The variables with the best weights of ``config.init_from`` in place of its own.

    Raises:
      UserError: the workdir has no checkpoint; it lacks arrays of the network, or has them of
        another shape, and ``config.init_partial`` does not allow that; or it has none of them.
    """
    own = traverse_util.flatten_dict(variables)

    def read(source: Checkpoints, step: int) -> tuple[Comparison, dict]:
        found = _compare(source, step, variables, config)
        tree = source.restore_weights(traverse_util.unflatten_dict(found.fitting), step)
        return found, traverse_util.flatten_dict(tree)

    source = filesystem.path("init_from", config.init_from)
    _, (found, restored) = read_existing(source, "best", read)
    cast = {key: value.astype(own[key].dtype) for key, value in restored.items()}
    return traverse_util.unflatten_dict(own | cast), found


def _compare(source: Checkpoints, step: int, variables: PyTree, config: ConfigDict) -> Comparison:
    """The arrays of a network and those of a checkpoint. Raises UserError as `initialize_from`."""
    own, saved = traverse_util.flatten_dict(variables), source.shapes(step)
    fitting = {
        key: jax.ShapeDtypeStruct(value.shape, saved[key].dtype, sharding=value.sharding)
        for key, value in own.items()
        if key in saved and tuple(saved[key].shape) == value.shape
    }
    missing = sorted("/".join(key) for key in own.keys() - saved.keys())
    reshaped = sorted(
        f"{'/'.join(key)} {tuple(saved[key].shape)} there and {own[key].shape} here"
        for key in (own.keys() & saved.keys()) - fitting.keys()
    )
    if not fitting:
        raise UserError(f"init_from={config.init_from}: nothing in it fits this network")
    if len(fitting) < len(own) and not config.init_partial:
        reasons = [f"of another shape: {_listed(reshaped)}"] * bool(reshaped)
        reasons += [f"missing there: {_listed(missing)}"] * bool(missing)
        raise UserError(
            f"init_from={config.init_from} gives {len(fitting)} of the {len(own)} arrays of this "
            f"network ({'; '.join(reasons)}); --config.init_partial=True starts the others afresh"
        )
    extra = sorted("/".join(key) for key in saved.keys() - own.keys())
    return Comparison(fitting, missing, reshaped, extra)


def _listed(names: list[str], most: int = 8) -> str:
    """The first names, and how many follow."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
