"""Weights of other libraries: files, names, conversion, and growth to more paths."""

from multipath_jax.weights.convert import (
    TELLING,
    Comparison,
    Reading,
    compare,
    convert,
    to_file,
)
from multipath_jax.weights.files import StateDict, is_weights, read
from multipath_jax.weights.growth import Growth, counted, find_growth, grow
from multipath_jax.weights.layouts import ARCHITECTURES, LAYOUTS, Key, Layout

__all__ = [
    "ARCHITECTURES",
    "LAYOUTS",
    "TELLING",
    "Comparison",
    "Growth",
    "Key",
    "Layout",
    "Reading",
    "StateDict",
    "compare",
    "convert",
    "counted",
    "find_growth",
    "grow",
    "is_weights",
    "read",
    "to_file",
]
