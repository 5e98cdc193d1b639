"""Whole networks, one family to a file, and the table that names them."""

from multipath_jax.models.registry import create_model, family_of, list_models

__all__ = ["create_model", "family_of", "list_models"]
