"""The arrays of a checkpoint by name: their shapes, checksums and differences."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree
from orbax.checkpoint import args as ocp_args

from multipath_jax.checkpoints.fingerprint import fingerprint
from multipath_jax.parallel.devices import replicated


def gather(items: dict[str, PyTree]) -> dict[str, PyTree]:
    """Gathers arrays that are sharded over processes, as NumPy arrays."""
    if jax.process_count() == 1:
        return items
    mesh = jax.tree.leaves(items)[0].sharding.mesh
    found = jax.jit(lambda tree: tree, out_shardings=replicated(mesh))(items)
    return jax.tree.map(lambda leaf: np.asarray(leaf.addressable_data(0)), found)


def by_name(tree: PyTree) -> dict[str, Any]:
    """The leaves by name; the names are the same for arrays, shapes and Orbax's metadata."""
    return ocp.tree.to_flat_dict(ocp.tree.serialize_tree(tree, keep_empty_nodes=True), sep="/")


def checksums(items: dict[str, PyTree]) -> dict[str, int]:
    """The checksum of every array, by name."""
    named = by_name(items)
    return dict(zip(named, fingerprint(list(named.values())).tolist(), strict=True))


def types_and_shapes(named: dict[str, Any]) -> dict[str, str]:
    """The type and shape of every array, such as ``float32[128, 10]``, by name."""
    return {name: f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}" for name, leaf in named.items()}


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, str]:
    """A phrase for every key whose values differ."""
    return {
        key: f"{key} is {there.get(key, 'missing')} there and {here.get(key, 'missing')} here"
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key)
    }


def restore_args(like: PyTree, **options) -> ocp_args.PyTreeRestore:
    """Orbax arguments that restore a tree with the shapes and shardings of ``like``."""
    where = ocp.checkpoint_utils.construct_restore_args(like)
    return ocp_args.PyTreeRestore(item=like, restore_args=where, **options)
