"""Compiling: what a program costs, and where compiled programs are kept."""

import os
import time
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from multipath_jax.errors import UserError
from multipath_jax.parallel.devices import on_cpu
from multipath_jax.utils import filesystem, progress

CACHE_FOLDER = "xla_cache"  # in a workdir


class Cost(NamedTuple):
    """What a compiled step takes.

    Attributes:
      seconds: tracing and compiling.
      flops: floating-point operations of one step, over all devices.
      bytes: a device's memory at its peak, the resident data included.
    """

    seconds: float
    flops: float | None
    bytes: int | None

    def __str__(self) -> str:
        known = [f"{self.seconds:.1f} s"]
        if self.flops is not None:
            known.append(f"{self.flops / 1e9:,.2f} GFLOPs a step")
        if self.bytes is not None:
            known.append(f"{self.bytes / 1e6:,.0f} MB at its peak")
        return ", ".join(known)


def compiled(function: jax.stages.Wrapped, *args: Any) -> tuple[jax.stages.Compiled, Cost]:
    """A jitted training step compiled for arguments like these, and what that came to."""
    begun = time.perf_counter()
    with progress.at_work("compiling the training step", announce=True):
        lowered = function.lower(*args)
        program = lowered.compile()
    seconds = time.perf_counter() - begun
    return program, Cost(seconds, flops(lowered), peak_bytes(program))


def flops(lowered: jax.stages.Lowered) -> float | None:
    """The floating-point operations of a program, a loop's body counted once.

    Counted before it is compiled, for a call to a library's convolution has no operations in it.
    None where the backend does not tell.
    """
    return (lowered.cost_analysis() or {}).get("flops")


def peak_bytes(compiled: jax.stages.Compiled) -> int | None:
    """The memory of a program: arguments, results and temporaries, in bytes.

    None where the backend's compiler does not tell.
    """
    found = compiled.memory_analysis()
    if found is None:
        return None
    return (
        found.argument_size_in_bytes
        + found.output_size_in_bytes
        + found.temp_size_in_bytes
        - found.alias_size_in_bytes
    )


def quick_compilation(mesh: Mesh) -> dict[str, int] | None:
    """Compiler options for a function that runs once: a third of the time to compile on CPUs."""
    return {"xla_backend_optimization_level": 0} if on_cpu(mesh) else None


def enable_compilation_cache(folder: str, workdir: str | os.PathLike = "") -> None:
    """Keeps compiled programs in ``folder``, or nowhere if that is "".

    Where it is "auto", that is where JAX_COMPILATION_CACHE_DIR says, if it is set; else in the
    workdir of a run that trains in a bucket, for that outlives this machine; else in the user's
    cache folder, which all runs share.

    Raises:
      UserError: the folder cannot be written; where "auto" cannot be, nothing is kept.
    """
    try:
        kept = _cache_folder(folder, workdir) if folder else None
    except UserError:
        if folder != "auto":
            raise
        kept = None
    jax.config.update("jax_compilation_cache_dir", kept)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _cache_folder(name: str, workdir: str | os.PathLike) -> str:
    """Its path, the folder made. Raises UserError where that cannot be."""
    if name == "auto":
        name = os.environ.get("JAX_COMPILATION_CACHE_DIR") or _own_cache(workdir)
    folder = filesystem.path("compilation_cache", name)
    return os.fspath(filesystem.output_folder("compilation_cache", folder))


def _own_cache(workdir: str | os.PathLike) -> str:
    if filesystem.is_address(workdir):
        return f"{os.fspath(workdir).rstrip('/')}/{CACHE_FOLDER}"
    return f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/multipath_jax/xla"
