"""Selection of gates, classes, layers and images by flags or by default.

--gates=2:2-1,6:1-1     the gate from input 2 to output 1 of router 2 (the paper's g_21^2), ...
--classes=cat,ship,9    names or numbers
--images=0,7,20-25,x.png    numbers and ranges of the test split, and image files
"""

import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from multipath_jax.errors import UserError
from multipath_jax.gates import Observation, Outline
from multipath_jax.utils import filesystem
from multipath_jax.utils.names import nearest

_NUMBERS = re.compile(r"(\d+)(?:-(\d+))?")


class GateIndex(NamedTuple):
    """One gate: router l, input i and output j, counted from one as in the paper."""

    router: int
    input: int
    output: int

    def __str__(self) -> str:
        return f"{self.router}:{self.input}-{self.output}"

    @property
    def label(self) -> str:
        """The paper's notation g_ij^l, for matplotlib."""
        return f"$g_{{{self.input}{self.output}}}^{{{self.router}}}$"

    def values(self, observation: Observation) -> Float[np.ndarray, " b"]:
        """The value of the gate for each image, ``[b]``."""
        return observation.routers[self.router - 1].gates[self.input - 1, :, self.output - 1]

    def scores(self, observation: Observation) -> Float[np.ndarray, " b"]:
        """The relevance score of the gate for each image, before the softmax, ``[b]``."""
        return observation.routers[self.router - 1].relevance[self.input - 1, :, self.output - 1]


def gates(text: str, outline: Outline) -> list[GateIndex]:
    """Parses the flag --gates.

    Raises:
      UserError: the text is not a list of gates, or the network does not have one of them.
    """
    chosen = []
    for item in _items(text, "--gates", "2:1-2"):
        match = re.fullmatch(r"(\d+):(\d+)-(\d+)", item)
        if not match:
            raise UserError(
                f"--gates: {item!r} is not a gate; write 2:1-2 for that of router 2 from input 1 "
                "to output 2"
            )
        gate = GateIndex(*map(int, match.groups()))
        _check(gate, outline)
        chosen.append(gate)
    return chosen


def _check(gate: GateIndex, outline: Outline) -> None:
    count = len(outline.gates)
    if not 1 <= gate.router <= count:
        raise UserError(f"--gates: {gate} does not exist; the network has the routers 1 to {count}")
    m, n = outline.gates[gate.router - 1]
    if not (1 <= gate.input <= m and 1 <= gate.output <= n):
        raise UserError(
            f"--gates: {gate} does not exist; router {gate.router} has the inputs 1 to {m} and the "
            f"outputs 1 to {n}"
        )


def most_variable_gates(observation: Observation, count: int = 4) -> list[GateIndex]:
    """The gates with the largest standard deviation over images, at most one per input of a router.

    Args:
      observation: the records for b images.
      count: number of gates.

    Returns:
      The gates, sorted.
    """
    found = []
    for number, router in enumerate(observation.routers, start=1):
        deviations = router.gates.std(axis=1)  # [m n]
        for i, row in enumerate(deviations, start=1):
            found.append((row.max(), GateIndex(number, i, int(row.argmax()) + 1)))
    found.sort(key=lambda pair: -pair[0])
    return sorted(gate for _, gate in found[:count])


def classes(text: str, names: Sequence[str]) -> list[int]:
    """Parses the flag --classes into labels.

    Raises:
      UserError: there is no such class; the message has the nearest names.
    """
    chosen = []
    for item in _items(text, "--classes", names[0]):
        if item in names:
            chosen.append(names.index(item))
        elif item.isdecimal() and int(item) < len(names):
            chosen.append(int(item))
        else:
            raise UserError(
                f"--classes: there is no class {item!r}; the nearest are "
                f"{nearest(item, names, 3)}, and numbers are 0 to {len(names) - 1}"
            )
    return chosen


def needs_test_split(text: str) -> bool:
    """Whether the flag --images selects images of the test split."""
    return any(map(_NUMBERS.fullmatch, _items(text, "--images", "0,7,20-25")))


def images(text: str, count: int, kind: str = "test") -> list[int | pathlib.Path]:
    """Parses the flag --images into indices of the test split and paths of image files.

    Args:
      text: the value of the flag.
      count: number of images in the test split.
      kind: kind of these images, for errors: "test" or "held-out".

    Raises:
      UserError: the test split has no such image.
    """
    chosen = []
    for item in _items(text, "--images", "0,7,20-25"):
        match = _NUMBERS.fullmatch(item)
        if not match:
            chosen.append(filesystem.local("--images", item))
            continue
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last < count:
            raise UserError(f"--images: {item} is not in the {kind} images 0 to {count - 1}")
        chosen += range(first, last + 1)
    return chosen


def layers(text: str, names: Sequence[str]) -> list[str]:
    """Parses the flag --layers.

    Raises:
      UserError: there is no such layer; the message has the nearest names.
    """
    chosen = list(_items(text, "--layers", names[0]))
    for item in chosen:
        if item not in names:
            raise UserError(
                f"--layers: {item!r} is not a layer of parallel paths; the nearest are "
                f"{nearest(item, names, 3)}"
            )
    return chosen


def evenly_spaced(things: Sequence, count: int) -> list:
    """At most ``count`` items, evenly spaced, including the first and the last."""
    if len(things) <= count:
        return list(things)
    places = np.linspace(0, len(things) - 1, count).round().astype(int)
    return [things[place] for place in places]


def _items(text: str, flag: str, example: str) -> Iterator[str]:
    items = [item.strip() for item in text.split(",")]
    if not all(items):
        raise UserError(f"{flag}={text} has an empty item; separate by commas, such as {example}")
    return iter(items)
