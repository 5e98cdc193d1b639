"""Names of a user's in matplotlib's figures: drawn as they are written, whatever they are."""

import functools
import os
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import matplotlib
from matplotlib import font_manager
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend

from multipath_jax.utils.storage import replacing


def as_written(*names: str) -> dict[str, Any]:
    """Properties of the text that shows these names: no mathematics, and fonts that have them."""
    characters = frozenset("".join(names))
    return {"parse_math": False, "fontfamily": list(_families(characters))}


def legend(
    parent: Axes | Figure, handles: Iterable[Artist], names: Iterable[str], **options: Any
) -> Legend:
    """A legend of all these names; matplotlib's own leaves out those that begin with ``_``."""
    names = list(names)
    made = parent.legend(list(handles), names, **options)
    for text in made.get_texts():
        text.update(as_written(text.get_text()))
    return made


def save(figure: Figure, path: str | os.PathLike, dpi: int) -> None:
    """Writes the figure, in the format that the name's ending says; replaces an older one.

    Characters that no installed font has are drawn as boxes, without a warning for each.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)
        with replacing(path) as new:
            figure.savefig(new, dpi=dpi)


@functools.lru_cache
def _families(characters: frozenset[str]) -> tuple[str, ...]:
    """The default family, and of the installed ones those that have what it lacks."""
    default = matplotlib.rcParams["font.family"]
    missing = characters - _had_by(font_manager.findfont(font_manager.FontProperties()), characters)
    found = []
    for name, path in _installed():
        if not missing:
            break
        if had := _had_by(path, missing):
            found.append(name)
            missing -= had
    return (*default, *found)


def _installed() -> Iterator[tuple[str, str]]:
    """Names and files of the fonts, upright and of ordinary weight ones first."""
    entries = sorted(
        font_manager.fontManager.ttflist,
        key=lambda e: (e.style != "normal", e.weight != 400, e.name, e.fname),
    )
    # Matplotlib's last resort has a box for every character.
    return ((e.name, e.fname) for e in entries if not e.name.startswith("Last Resort"))


def _had_by(path: str, characters: frozenset[str]) -> frozenset[str]:
    """Those of the characters that a font has."""
    try:
        font = font_manager.get_font(path)
    except (OSError, RuntimeError):  # one that cannot be read
        return frozenset()
    return frozenset(c for c in characters if font.get_char_index(ord(c)))
