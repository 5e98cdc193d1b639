"""Conversion between the arrays of a file and the variables of a network."""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy

from multipath_jax.errors import UserError
from multipath_jax.layers import choice
from multipath_jax.utils.names import nearest
from multipath_jax.weights.files import ABOUT, StateDict
from multipath_jax.weights.layouts import LAYOUTS, Key, Layout, Place, Shape

# Options, with their defaults, that change what a network computes with the same arrays.
TELLING = {"shortcut": "projection"}


# --- Comparison ----------------------------------------------------------------------------------


class Head(NamedTuple):
    """A last layer whose number of outputs differs.

    Attributes:
      layer: its path in the network.
      there, here: number of outputs in the source, and in the network.
    """

    layer: str
    there: int
    here: int

    def __str__(self) -> str:
        return f"{self.layer} starts afresh: {self.there} classes there and {self.here} here"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A comparison of the arrays of a network with those of a source.

    Attributes:
      fitting: keys of the arrays of the network that are in the source with the same shape.
      missing: names in the source's layout of arrays that the source lacks.
      reshaped: names of arrays with another shape, with both shapes.
      extra: names of arrays that only the source has.
      head: the layer of ``reshaped``, if it is a single one and only its outputs differ.
      growth: a line about added paths; "" if there are none.
      mean, std: mean and standard deviation by channel of the pixels in [0, 1] with which the
        weights were trained; empty if they are unknown.
      class_names: names of the classes of the source; empty if they are unknown.
    """

    fitting: tuple[Key, ...]
    missing: list[str]
    reshaped: list[str]
    extra: list[str]
    head: Head | None = None
    growth: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    class_names: tuple[str, ...] = ()

    @property
    def lines(self) -> list[str]:
        """Lines for the log."""
        return [
            *([self.growth] if self.growth else []),
            *([str(self.head)] if self.head else []),
            f"missing there, so fresh: {', '.join(self._missing()) or 'none'}",
            f"of another shape, so fresh: {', '.join(self.reshaped) or 'none'}",
            f"extra there, so unused: {', '.join(self.extra) or 'none'}",
        ]

    def other_classes(self, names: Sequence[str]) -> list[str]:
        """A line for the log if the last layer is that of classes with other names.

        Args:
          names: the names of the network's classes.
        """
        there = self.class_names
        if self.head or not there or there == tuple(names):
            return []
        return [
            f"the last layer is kept, but the classes are named {listed(there, 5)} there and "
            f"{listed(names, 5)} here; check that they are the same, in the same order"
        ]

    def check(self, source: str, remedy: str, partial: bool = False, whole: bool = False) -> None:
        """Raises UserError if arrays do not fit, except for a head with other outputs.

        Args:
          source: the source, for the message.
          remedy: what to do, for the message.
          partial: whether arrays may be missing or have another shape.
          whole: whether extra arrays are an error, unless ``partial``.
        """
        if not self.fitting:
            raise UserError(f"{source}: nothing in it fits this network")
        unused = self.extra if whole else []
        reasons = {
            "of another shape": self.reshaped,
            "missing there": self._missing(),
            "extra there": unused,
        }
        only_head = self.head is not None and not self.missing and not unused
        if not partial and not only_head and any(reasons.values()):
            total = len(self.fitting) + len(self.missing) + len(self.reshaped)
            said = "; ".join(f"{what}: {listed(names)}" for what, names in reasons.items() if names)
            raise UserError(
                f"{source} gives {len(self.fitting)} of the {total} arrays of this network "
                f"({said}); {remedy}"
            )

    def _missing(self) -> list[str]:
        """The missing names, each with the most similar extra name."""
        if not self.extra:
            return self.missing
        return [f"{name} (nearest there: {nearest(name, self.extra)})" for name in self.missing]


def listed(names: Sequence[str], most: int = 8) -> str:
    """Lists the first names, and the number of the others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def compare(
    own: Mapping[Key, Shape], names: Mapping[Key, str], there: Mapping[str, Shape]
) -> Comparison:
    """Compares the arrays of a network with those of a source.

    The state of discrete routers may be missing: it starts afresh behind the weights of a soft
    network.

    Args:
      own: shapes of the network's arrays in the layout of the source, by key.
      names: their names in the source, by key.
      there: shapes of all arrays in the source, by name.
    """
    present = {key: there[names[key]] for key in own if names[key] in there}
    reshaped = {key: (shape, own[key]) for key, shape in present.items() if shape != own[key]}
    return Comparison(
        fitting=tuple(key for key in present if key not in reshaped),
        missing=sorted(
            names[key] for key in own if key not in present and key[0] != choice.COLLECTION
        ),
        reshaped=sorted(
            f"{names[key]} {there} there and {here} here" for key, (there, here) in reshaped.items()
        ),
        extra=sorted(there.keys() - {*names.values()}),
        head=_head(reshaped),
    )


def _head(reshaped: Mapping[Key, tuple[Shape, Shape]]) -> Head | None:
    """The attribute `Comparison.head`: one layer with a bias, in whose arrays one axis differs."""
    layers = {"/".join(key[1:-1]) for key in reshaped}
    changes = {
        tuple(pair for pair in zip(there, here, strict=False) if pair[0] != pair[1])
        for there, here in reshaped.values()
    }
    same_rank = all(len(there) == len(here) for there, here in reshaped.values())
    has_bias = any(key[-1] == "bias" for key in reshaped)
    if len(layers) != 1 or len(changes) != 1 or not (same_rank and has_bias):
        return None
    (layer,), (pairs,) = layers, changes
    return Head(layer, *pairs[0]) if len(pairs) == 1 else None


# --- Conversion ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Reading:
    """The arrays of a file, for a network.

    Attributes:
      arrays: the arrays that fit, with the keys and the order of axes of the network.
      compared: the comparison with the network.
      options: options with which the network computes what the file's network did, by name.
    """

    arrays: dict[Key, np.ndarray]
    compared: Comparison
    options: dict[str, str]


def convert(state: StateDict, shapes: Mapping[Key, Shape]) -> Reading:
    """Finds the arrays of a network in a file, in the layout with the most matching names.

    Args:
      state: the content of the file.
      shapes: shapes of the network's variables, by flattened key.
    """
    found = [(layout, layout.places(shapes)) for layout in LAYOUTS]
    layout, places = max(
        found, key=lambda one: sum(place.name in state.arrays for place in one[1].values())
    )
    unknown = {key: Place("/".join(key), side=0) for key in shapes.keys() - places.keys()}
    places |= unknown
    arrays = dict(state.arrays)
    for key, place in places.items():
        if place.name in arrays and len(shapes[key]) == 2:
            arrays[place.name] = _flattened(arrays[place.name])
    compared = compare(
        {key: _shape_there(shape, places[key]) for key, shape in shapes.items()},
        {key: place.name for key, place in places.items()},
        {name: array.shape for name, array in arrays.items()},
    )
    ours = {key: _to_ours(arrays[places[key].name], places[key]) for key in compared.fitting}
    return Reading(ours, compared, _options(state, layout))


def to_file(variables: Mapping[Key, np.ndarray], about: Mapping[str, Any]) -> bytes:
    """Serializes variables in the safetensors format, in the first layout that has all of them.

    Args:
      variables: the variables, by flattened key.
      about: metadata for the file, by fields of `StateDict`; values for JSON.
    """
    shapes = {key: value.shape for key, value in variables.items()}
    found = (layout.places(shapes) for layout in LAYOUTS)
    places = next(places for places in found if places.keys() == shapes.keys())
    arrays = {
        place.name: np.asarray(_to_theirs(variables[key], place), order="C")
        for key, place in places.items()
    }
    return safetensors.numpy.save(arrays, {"format": "pt", ABOUT: json.dumps(about)})


def _options(state: StateDict, layout: Layout) -> dict[str, str]:
    """The attribute `Reading.options`; files written by this package have them as metadata."""
    if state.options is not None:
        return {key: value for key, value in state.options.items() if key in TELLING}
    needless = any(re.fullmatch(layout.unless, name) for name in state.arrays)
    return {} if needless else dict(layout.options)


def _flattened(array: np.ndarray) -> np.ndarray:
    """Flattens the kernel of a convolution, which timm's VGG has for dense layers."""
    return array.reshape(len(array), -1) if array.ndim == 4 else array


def _shape_there(shape: Shape, place: Place) -> Shape:
    if not place.side or len(shape) == 1:
        return shape
    *size, inputs, outputs = shape
    return (outputs, inputs, *size)


def _to_ours(array: np.ndarray, place: Place) -> np.ndarray:
    """Reorders axes: ``[o i h w]`` -> ``[h w i o]`` and ``[o i]`` -> ``[i o]``."""
    if not place.side or array.ndim == 1:
        return array
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    maps = array.reshape(len(array), -1, place.side, place.side)
    return maps.transpose(2, 3, 1, 0).reshape(-1, len(array))


def _to_theirs(array: np.ndarray, place: Place) -> np.ndarray:
    """The inverse of `_to_ours`."""
    if not place.side or array.ndim == 1:
        return array
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    outputs = array.shape[-1]
    maps = array.reshape(place.side, place.side, -1, outputs)
    return maps.transpose(3, 2, 0, 1).reshape(outputs, -1)
