"""An XLA flag for convolutions on CPUs that makes training about twice as fast."""

import importlib.util
import mmap
import os
import pathlib
import pkgutil
from importlib import metadata

import jax
import jaxlib

# jaxlib 0.10 uses YNNPACK for single float32 convolutions, whose gradients with respect to the
# kernel take up to eight times as long as those of XLA's own library (docs/performance.md).
SWITCH = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"


def use_fast_convolutions() -> None:
    """Makes XLA compile single float32 convolutions on CPUs without YNNPACK.

    Must be called before JAX computes anything, since XLA reads its flags once; repeated calls have
    no effect. All programs of this package call it. It sets the environment variable ``XLA_FLAGS``
    to `SWITCH`, also for child processes, if JAX will use CPUs, ``XLA_FLAGS`` is not set, and this
    jaxlib knows the flag (an unknown flag would end the process).
    """
    if "XLA_FLAGS" not in os.environ and _on_cpu() and _is_known():
        os.environ["XLA_FLAGS"] = SWITCH


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
