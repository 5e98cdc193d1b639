"""Whole networks, one family to a file, and the table that names them."""

from multipath_jax.models.registry import create_model, list_models

__all__ = ["create_model", "list_models"]
