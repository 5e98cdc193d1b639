"""Compiles the training step for a TPU slice, on any Linux machine.

    python -m multipath_jax.compile_tpu --config=imagenet_r18_2cc --topology=v5e:4x4
    ... --config.mesh.path=2 --config.batch_size=1024

Needs libtpu (pip install 'multipath_jax[tpu]') but no TPU. Prints the memory, operations, bytes and
communication of one chip for one step. Nothing is executed, so times are unknown. Exit status: 0
success; 1 the step does not fit into the chip's memory, or the figures cannot be written; 2 invalid
input.
"""

import json
import math
import os
import re
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

# Set before importing JAX: otherwise libtpu looks for the slice that this machine belongs to.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.experimental import topologies

from multipath_jax.config import flags as config_flags
from multipath_jax.data import Dataset, Split
from multipath_jax.errors import UserError
from multipath_jax.parallel.compilation import peak_bytes
from multipath_jax.parallel.devices import placed, split_batch
from multipath_jax.training.setup import Setup
from multipath_jax.training.step import Batch
from multipath_jax.utils import filesystem
from multipath_jax.utils.tables import aligned

TOPOLOGY = flags.DEFINE_string("topology", "v5e:2x4", "A slice, such as v5e:4x4 or v4:2x2x4.")
JSON = flags.DEFINE_string("json", None, "Also write the figures to this file.")

MEMORY = {"v4": 32, "v5e": 16, "v5p": 95, "v6e": 32}  # memory per chip in GiB
# Number and shape of training images, and number of classes; the data sets are not read.
KNOWN = {
    "cifar10": (50_000, (32, 32, 3), 10),
    "cifar100": (50_000, (32, 32, 3), 100),
    "imagenet256": (1_281_167, (256, 256, 3), 1000),
    "imagenet256/subset100": (130_000, (256, 256, 3), 100),  # as Section 6.4 counts them
}
_TYPES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
_KINDS = ("all-reduce", "reduce-scatter", "all-gather", "collective-permute", "all-to-all")


class Exchange(NamedTuple):
    """The collectives of one kind in a program.

    Attributes:
      count: number of collectives.
      bytes: size of their results.
    """

    count: int
    bytes: int


def main(argv: Sequence[str]) -> int:
    """Compiles the step, prints its cost, and returns the exit status."""
    if len(argv) > 1 or config_flags.CONFIG.value is None:
        raise UserError("usage: --config=cifar:NAME --topology=v5e:4x4")
    chip = TOPOLOGY.value.partition(":")[0]
    if chip not in MEMORY:
        raise UserError(f"--topology={TOPOLOGY.value}: must be of {', '.join(MEMORY)}")
    out = JSON.value and filesystem.output_file("--json", JSON.value, replace=True)
    found = measure(config_flags.CONFIG.value, slice_of(TOPOLOGY.value))
    print("\n".join(lines(found, TOPOLOGY.value, MEMORY[chip])))
    if out:
        with filesystem.replacing(out) as new:
            new.write_text(json.dumps({"topology": TOPOLOGY.value, **found}, indent=2))
    return int(found["memory"] > MEMORY[chip] << 30)


def slice_of(topology: str) -> list[jax.Device]:
    """The abstract devices of a slice. Raises UserError if libtpu does not know it."""
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except Exception as error:  # libtpu raises many types of exceptions
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"--topology={topology} is not available ({reason}); it needs libtpu: "
            "pip install 'multipath_jax[tpu]'"
        ) from error


def described(name: str) -> Dataset:
    """A data set of zeros with the shapes of a known one; it uses no memory.

    Raises:
      UserError: the data set is not in `KNOWN`.
    """
    if name not in KNOWN:
        raise UserError(f"dataset.name={name}: must be one of {', '.join(KNOWN)}")
    count, shape, classes = KNOWN[name]
    images = np.broadcast_to(np.uint8(0), (count, *shape))
    split = Split(images, np.broadcast_to(np.int32(0), (count,)))
    ones = np.ones(shape[-1], np.float32)
    return Dataset(name, split, split, tuple(map(str, range(classes))), ones, ones)


def measure(config: Any, devices: Sequence[jax.Device]) -> dict[str, Any]:
    """Compiles the training step and collects the compiler's cost estimates for one chip.

    Args:
      config: the whole config.
      devices: the devices of a slice.
    """
    if config.dtype == "auto":
        config.dtype = "bfloat16"
    setup = Setup(config, described(config.dataset.name), devices)
    state = setup.abstract_carry.state
    size, split = config.batch_size, split_batch(setup.mesh)
    batch = Batch(
        jax.ShapeDtypeStruct((size, *setup.dataset.image_shape), jnp.uint8),
        jax.ShapeDtypeStruct((size,), jnp.int32),
    )
    batch = placed(batch, Batch(split, split))
    where = setup.placement.sharding(state)
    step = jax.jit(
        lambda state, batch: setup.train_step(state, batch),
        donate_argnums=0,
        out_shardings=(where, setup.everywhere),
    )
    begun = time.monotonic()
    compiled = step.lower(state, batch).compile()
    seconds = time.monotonic() - begun
    costs = compiled.cost_analysis()
    return {
        "network": config.model.name,
        "dtype": config.dtype,
        "batch_size": size,
        "mesh": dict(setup.mesh.shape),
        "compile_seconds": round(seconds, 1),
        "memory": peak_bytes(compiled),
        "parameters": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params)),
        "flops": costs.get("flops"),
        "bytes": costs.get("bytes accessed"),
        "exchanged": {k: v._asdict() for k, v in exchanges(compiled.as_text()).items()},
    }


def exchanges(program: str) -> dict[str, Exchange]:
    """The collectives in a compiled program (HLO text), by kind."""
    found, chains = {}, set()
    for line in program.splitlines():
        match = re.search(rf"= (.*?) ({'|'.join(_KINDS)})(-start)?\(", line)
        # A collective that overlaps with other work occurs once for each piece of that work.
        chain = re.search(r'chain_id="(\d+)"', line)
        if match and not (chain and chain[1] in chains):
            chains |= {chain[1]} if chain else set()
            sizes = [_bytes(*shape) for shape in re.findall(r"(\w+)\[([\d,]*)\]", match[1])]
            # A start operation lists its operands in addition to its results.
            moved = max(sizes, default=0) if match[3] else sum(sizes)
            before = found.get(match[2], Exchange(0, 0))
            found[match[2]] = Exchange(before.count + 1, before.bytes + moved)
    return found


def _bytes(kind: str, dimensions: str) -> int:
    return _TYPES.get(kind, 0) * math.prod(int(size) for size in dimensions.split(",") if size)


def lines(found: dict[str, Any], topology: str, gigabytes: int) -> list[str]:
    """The figures as lines of text."""
    mesh = " x ".join(f"{name} {size}" for name, size in found["mesh"].items())
    cells = [
        ["memory", f"{found['memory'] / 2**30:.3f} GiB of {gigabytes} GiB"],
        ["operations", f"{(found['flops'] or 0) / 1e9:,.1f} GFLOPs"],
        ["bytes", f"{(found['bytes'] or 0) / 1e6:,.0f} MB"],
    ]
    for kind, exchange in sorted(found["exchanged"].items()):
        cells.append([kind, f"{exchange['count']}, {exchange['bytes'] / 1e6:,.3f} MB"])
    return [
        f"{found['network']} batch {found['batch_size']} {found['dtype']} on {topology}: {mesh}",
        f"compiled in {found['compile_seconds']} s; for each chip and step:",
        *(f"  {line}" for line in aligned(cells, left=(0, 1)).splitlines()),
    ]


def run() -> NoReturn:
    """The entry point."""
    config_flags.run(main)


if __name__ == "__main__":
    run()
