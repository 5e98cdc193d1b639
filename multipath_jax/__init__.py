"""Data-dependent routing in multi-path neural networks, in JAX and Flax."""

from typing import Any

from multipath_jax import layers, routing
from multipath_jax.cpu import use_fast_convolutions as use_fast_cpu_convolutions
from multipath_jax.models import create_model, list_models

__all__ = [
    "create_model",
    "layers",
    "list_models",
    "load_run",
    "routing",
    "use_fast_cpu_convolutions",
]


def __getattr__(name: str) -> Any:
    """`load_run` when it is first asked for: data sets and checkpoints take seconds to import."""
    if name == "load_run":
        from multipath_jax.runs import load_run

        return load_run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
