"""The mesh of all devices, and where arrays lie on it."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array, Int, Num, PyTree
from ml_collections import ConfigDict

from multipath_jax.errors import UserError

DATA, PATH = "data", "path"  # the axes of the mesh: a batch is split over the first


def make_mesh(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh ``(data, path)`` of all devices; ``mesh.data=-1`` takes what ``mesh.path`` leaves.

    Args:
      devices: other ones than those of this machine.

    Raises:
      UserError: the axes do not make up the number of devices, or the batch does not divide.
    """
    devices = jax.devices() if devices is None else devices
    data, path, count = config.mesh.data, config.mesh.path, len(devices)
    if path < 1:
        raise UserError(f"mesh.path={path} must be at least 1")
    data = count // path if data == -1 else data
    if data < 1 or data * path != count:
        raise UserError(
            f"mesh.data={config.mesh.data} and mesh.path={path} do not make up the "
            f"{count} devices; mesh.data=-1 takes them all"
        )
    if config.batch_size % (data * config.accumulate):
        parts = f"{config.accumulate} micro-batches on " * (config.accumulate > 1)
        raise UserError(
            f"batch_size={config.batch_size} does not divide among {parts}{data} devices; "
            f"use a multiple of {data * config.accumulate}"
        )
    return _mesh(data, path, devices)


def evaluation_mesh() -> Mesh:
    """A mesh of all devices, each with a part of the batch and the whole network."""
    return _mesh(jax.device_count(), 1, jax.devices())


def _mesh(data: int, path: int, devices: Sequence[jax.Device]) -> Mesh:
    # Auto: XLA places what lies between the inputs and the outputs, so models need not know.
    auto = (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh((data, path), (DATA, PATH), axis_types=auto, devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Split over the data axis of the mesh, along dimension ``axis`` of the array."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, DATA))


def own_rows(sharding: Sharding, batch_size: int) -> Int[np.ndarray, " r"]:
    """Which examples of a batch lie on the devices of this process, in rising order."""
    parts = sharding.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[part] for part in parts]))


def from_rows(
    array: Num[np.ndarray, "r ..."],
    rows: Int[np.ndarray, " r"],
    batch_size: int,
    sharding: Sharding,
) -> Num[Array, "b ..."]:
    """A batch on the devices, from what each process has of it (`own_rows`); does not wait."""
    array = np.asarray(array)  # a loader's arrays in shared memory are of a class of their own

    def part(index: tuple[slice, ...]) -> np.ndarray:
        start, stop, _ = index[0].indices(batch_size)
        return array[slice(*np.searchsorted(rows, (start, stop)))]

    return jax.make_array_from_callback((batch_size, *array.shape[1:]), sharding, part)


def placed(shapes: PyTree, shardings: PyTree) -> PyTree:
    """The shapes and types of arrays that lie so; a sharding for each."""
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        shapes,
        shardings,
    )


def round_up(batch_size: int, mesh: Mesh) -> int:
    """The next batch size that divides among the devices."""
    return batch_size + -batch_size % mesh.shape[DATA]


def on_cpu(mesh: Mesh) -> bool:
    """Whether the mesh is of CPUs, where loops over convolutions are slow (see `step.Runner`)."""
    return mesh.devices.flat[0].platform == "cpu"


def compute_dtype(name: str) -> jnp.dtype:
    """The type of the computation; ``auto``: float32 on CPUs, bfloat16 on GPUs and TPUs."""
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)
