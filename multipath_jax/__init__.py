"""Data-dependent routing in multi-path neural networks, in JAX and Flax."""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

from multipath_jax import layers, routing
from multipath_jax.models import create_model, list_models
from multipath_jax.utils.cpu import tune as tune_cpu

if TYPE_CHECKING:
    from multipath_jax import data, recipes, weights
    from multipath_jax.pretrained import load_weights, save_weights
    from multipath_jax.runs import LoadedRun, load_run
    from multipath_jax.trainer import Trainer

__version__ = importlib.metadata.version("multipath_jax")
__all__ = [
    "LoadedRun",
    "Trainer",
    "create_model",
    "data",
    "layers",
    "list_models",
    "load_run",
    "load_weights",
    "recipes",
    "routing",
    "save_weights",
    "tune_cpu",
    "weights",
]

# Imported lazily, on first access: the data and checkpoint libraries take seconds to import.
_LATER = {
    "LoadedRun": "runs",
    "Trainer": "trainer",
    "data": "",
    "load_run": "runs",
    "load_weights": "pretrained",
    "recipes": "",
    "save_weights": "pretrained",
    "weights": "",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if not _LATER[name]:
        return importlib.import_module(f"{__name__}.{name}")
    return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
