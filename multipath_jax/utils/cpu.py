"""Settings of XLA and of the memory allocator that make training on CPUs faster."""

import ctypes
import importlib.util
import mmap
import os
import pathlib
import pkgutil
import platform
from importlib import metadata

import jax
import jaxlib

# jaxlib 0.10 uses YNNPACK for single float32 convolutions, whose gradients with respect to the
# kernel take up to eight times as long as those of XLA's own library (docs/performance.md).
SWITCH = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"


# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def tune() -> None:
    """Makes training on CPUs two to three times as fast.

    Must be called before JAX computes anything, since XLA reads its flags once; repeated calls have
    no effect. All programs of this package call it. Has no effect if JAX will not use CPUs. Results
    are the same to rounding.

    - Single float32 convolutions are compiled without YNNPACK: sets the environment variable
      ``XLA_FLAGS`` to `SWITCH`, also for child processes, unless ``XLA_FLAGS`` is set or this
      jaxlib does not know the flag (an unknown flag would end the process).
    - Freed memory remains with the process, which then does not request the buffers of every step
      from the operating system anew (glibc's ``mallopt``; other allocators are left alone), unless
      ``GLIBC_TUNABLES`` or a variable that begins with ``MALLOC_`` is set. It remains until a run
      ends (`release_memory`), so that a process keeps the most that its run has used.
    """
    if not _on_cpu():
        return
    if "XLA_FLAGS" not in os.environ and _is_known():
        os.environ["XLA_FLAGS"] = SWITCH
    if not any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Lets glibc serve every request from one heap that does not shrink."""
    if libc := _glibc():
        libc.mallopt(M_MMAP_MAX, 0)  # buffers of any size come from the heap
        libc.mallopt(M_TRIM_THRESHOLD, -1)  # whose end is not returned
        libc.mallopt(M_ARENA_MAX, 1)  # heaps of other threads are returned when they are empty


def release_memory() -> None:
    """Returns freed memory to the operating system, as at the end of a run."""
    if libc := _glibc():
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    """The C library, if it is glibc."""
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


def convolutions_in_use() -> str | None:
    """A line that says how convolutions on CPUs are compiled, for logs.

    Returns:
      The line; None on accelerators, or if this jaxlib does not know `SWITCH`.
    """
    if not _on_cpu() or not _is_known():
        return None
    if SWITCH in os.environ.get("XLA_FLAGS", "").split():
        return f"convolutions on the CPU: without YNNPACK (XLA_FLAGS={SWITCH})"
    return f"convolutions on the CPU: with YNNPACK, for XLA_FLAGS has no {SWITCH}"


def _on_cpu() -> bool:
    """Whether JAX will use CPUs, determined without initializing it."""
    if jax.config.jax_platforms:
        return jax.config.jax_platforms.split(",")[0] == "cpu"
    namespace = importlib.util.find_spec("jax_plugins")
    plugins = namespace and [*pkgutil.iter_modules(namespace.submodule_search_locations)]
    plugins = plugins or metadata.entry_points(group="jax_plugins")
    return not plugins and importlib.util.find_spec("libtpu") is None


def _is_known() -> bool:
    """Whether the names of the flag and of its value are in jaxlib's shared library."""
    names = (b"xla_cpu_experimental_ynn_fusion_type", b"INDIVIDUAL_CONVOLUTION")
    for library in pathlib.Path(jaxlib.__file__).parent.glob("*jax_common*"):
        with (
            library.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text,
        ):
            return all(text.find(name) >= 0 for name in names)
    return False
