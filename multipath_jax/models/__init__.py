"""The networks of the paper, one family per file, and the registry of their names."""

from multipath_jax.models.registry import create_model, family_of, list_models

__all__ = ["create_model", "family_of", "list_models"]
