"""Compilation: the cost of a compiled step, and the persistent compilation cache."""

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
    """The cost of a compiled step.

    Attributes:
      seconds: time to trace and compile it.
      flops: floating-point operations per step, over all devices; None if unknown.
      bytes: peak memory per device in bytes, including resident data; None if unknown.
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
    """Compiles a jitted training step ahead of time.

    Args:
      function: the jitted function.
      *args: its arguments, as arrays or `jax.ShapeDtypeStruct`s.

    Returns:
      The compiled function and its cost.
    """
    begun = time.perf_counter()
    with progress.at_work("compiling the training step", announce=True):
        lowered = function.lower(*args)
        program = lowered.compile()
    seconds = time.perf_counter() - begun
    return program, Cost(seconds, flops(lowered), peak_bytes(program))


def flops(lowered: jax.stages.Lowered) -> float | None:
    """The floating-point operations of a program, with the bodies of loops counted once.

    Counted before compilation: in a compiled program, library calls (such as convolutions) count as
    zero.

    Returns:
      The number, or None if the backend does not report it.
    """
    return (lowered.cost_analysis() or {}).get("flops")


def peak_bytes(compiled: jax.stages.Compiled) -> int | None:
    """The memory of a program in bytes: arguments, results and temporaries.

    Returns:
      The number, or None if the backend does not report it.
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
    """Compiler options for functions that run once: on CPUs they compile three times as fast."""
    return {"xla_backend_optimization_level": 0} if on_cpu(mesh) else None


def enable_compilation_cache(folder: str, workdir: str | os.PathLike = "") -> None:
    """Enables JAX's persistent compilation cache.

    Args:
      folder: the folder of the cache; "" disables it. "auto" is $JAX_COMPILATION_CACHE_DIR if set;
        else, if the workdir is in a bucket, a folder in the workdir, which outlives this machine;
        else a folder in the user's cache folder, which all runs share.
      workdir: the workdir of the run.

    Raises:
      UserError: the folder cannot be written; with "auto", the cache is disabled instead.
    """
    try:
        kept = _cache_folder(folder, workdir) if folder else None
    except UserError:
        if folder != "auto":
            raise
        kept = None
    jax.config.update("jax_compilation_cache_dir", kept)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def enable_shared_cache(stored: str) -> None:
    """Enables the cache of this machine's user, to use a run that another machine may have trained.

    Args:
      stored: the run's ``config.compilation_cache``: "" disables the cache; a folder is ignored,
        since it may not exist here.
    """
    enable_compilation_cache(stored and "auto")


def _cache_folder(name: str, workdir: str | os.PathLike) -> str:
    """Creates the cache folder and returns its path. Raises UserError if that is not possible."""
    if name == "auto":
        name = os.environ.get("JAX_COMPILATION_CACHE_DIR") or _own_cache(workdir)
    folder = filesystem.path("compilation_cache", name)
    return os.fspath(filesystem.output_folder("compilation_cache", folder))


def _own_cache(workdir: str | os.PathLike) -> str:
    if filesystem.is_address(workdir):
        return f"{os.fspath(workdir).rstrip('/')}/{CACHE_FOLDER}"
    return f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/multipath_jax/xla"
