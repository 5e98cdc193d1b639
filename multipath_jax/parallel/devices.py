"""The mesh of all devices, and shardings of arrays on it."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array, Int, Num, PyTree
from ml_collections import ConfigDict

from multipath_jax.errors import UserError

DATA, PATH = "data", "path"  # the axes of the mesh: batches and paths are sharded over them


def make_mesh(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Makes a mesh with the axes ``(data, path)``; ``mesh.data=-1`` uses all remaining devices.

    Args:
      config: the whole config.
      devices: the devices to use; None: all devices.

    Raises:
      UserError: the product of the axes is not the number of devices, or the batch size is not
        divisible by the data axis.
    """
    devices = jax.devices() if devices is None else devices
    data, path, count = config.mesh.data, config.mesh.path, len(devices)
    if path < 1:
        raise UserError(f"mesh.path={path} must be at least 1")
    data = count // path if data == -1 else data
    if data < 1 or data * path != count:
        raise UserError(
            f"mesh.data={config.mesh.data} and mesh.path={path} do not make up the "
            f"{count} devices; mesh.data=-1 uses all of them"
        )
    if config.batch_size % (data * config.accumulate):
        parts = f"{config.accumulate} micro-batches on " * (config.accumulate > 1)
        raise UserError(
            f"batch_size={config.batch_size} does not divide among {parts}{data} devices; "
            f"use a multiple of {data * config.accumulate}"
        )
    return _mesh(data, path, devices)


def evaluation_mesh() -> Mesh:
    """A mesh of all devices for data parallelism: batches are sharded, the network replicated."""
    return _mesh(jax.device_count(), 1, jax.devices())


def _mesh(data: int, path: int, devices: Sequence[jax.Device]) -> Mesh:
    # Auto: XLA chooses the sharding of intermediate values.
    auto = (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh((data, path), (DATA, PATH), axis_types=auto, devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding that replicates an array over all devices."""
    return NamedSharding(mesh, PartitionSpec())


def replicated_like(sharding: Sharding) -> Sharding:
    """The sharding that replicates an array over the devices of another one."""
    return replicated(sharding.mesh) if isinstance(sharding, NamedSharding) else sharding


def split_batch(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """The sharding of a batch: dimension ``axis`` is sharded over the data axis of the mesh."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, DATA))


def own_rows(sharding: Sharding, batch_size: int) -> Int[np.ndarray, " r"]:
    """The indices of the examples of a batch on this process's devices, increasing, ``[r]``."""
    parts = sharding.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[part] for part in parts]))


def from_rows(
    array: Num[np.ndarray, "r ..."],
    rows: Int[np.ndarray, " r"],
    batch_size: int,
    sharding: Sharding,
) -> Num[Array, "b ..."]:
    """Makes a global array from the examples of each process; transfers asynchronously.

    Args:
      array: the examples of this process, ``[r ...]``.
      rows: their indices in the batch, ``[r]`` (`own_rows`).
      batch_size: number of examples b of the whole batch.
      sharding: sharding of the result.

    Returns:
      The batch, ``[b ...]``.
    """
    array = np.asarray(array)  # Grain's arrays in shared memory are a subclass

    def part(index: tuple[slice, ...]) -> np.ndarray:
        start, stop, _ = index[0].indices(batch_size)
        return array[slice(*np.searchsorted(rows, (start, stop)))]

    return jax.make_array_from_callback((batch_size, *array.shape[1:]), sharding, part)


def placed(shapes: PyTree, shardings: PyTree) -> PyTree:
    """Adds shardings to a tree of `jax.ShapeDtypeStruct`s."""
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        shapes,
        shardings,
    )


def round_up(batch_size: int, mesh: Mesh) -> int:
    """Rounds a batch size up to a multiple of the mesh's data axis."""
    return batch_size + -batch_size % mesh.shape[DATA]


def on_cpu(mesh: Mesh) -> bool:
    """Whether the devices are CPUs, where loops over convolutions are slow (see `step.Runner`)."""
    return mesh.devices.flat[0].platform == "cpu"


def compute_dtype(name: str) -> jnp.dtype:
    """The type of the computation: ``auto`` is float32 on CPUs and bfloat16 on GPUs and TPUs."""
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)
