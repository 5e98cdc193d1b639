"""Data-dependent routing in multi-path neural networks, in JAX and Flax."""

from multipath_jax import layers, routing
from multipath_jax.models import create_model, list_models

__all__ = ["create_model", "layers", "list_models", "routing"]
