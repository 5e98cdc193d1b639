"""Drawing users' names in matplotlib figures literally, in any script."""

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
    """Text properties for names: no math mode, and fonts that have their characters."""
    characters = frozenset("".join(names))
    return {"parse_math": False, "fontfamily": list(_families(characters))}


def legend(
    parent: Axes | Figure, handles: Iterable[Artist], names: Iterable[str], **options: Any
) -> Legend:
    """A legend with these names, including those that start with ``_``, which matplotlib skips."""
    names = list(names)
    made = parent.legend(list(handles), names, **options)
    for text in made.get_texts():
        text.update(as_written(text.get_text()))
    return made


def save(figure: Figure, path: str | os.PathLike, dpi: int) -> None:
    """Writes a figure in the format given by the suffix of the path; replaces an existing file.

    Characters that are in no installed font are drawn as boxes, without warnings.

    Args:
      figure: the figure.
      path: file to write.
      dpi: resolution in dots per inch.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)
        with replacing(path) as new:
            figure.savefig(new, dpi=dpi)


@functools.lru_cache
def _families(characters: frozenset[str]) -> tuple[str, ...]:
    """The default font family, and installed ones with the characters that it lacks."""
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
    """Yields names and files of the installed fonts, upright and normal weight first."""
    entries = sorted(
        font_manager.fontManager.ttflist,
        key=lambda e: (e.style != "normal", e.weight != 400, e.name, e.fname),
    )
    # Matplotlib's fallback font "Last Resort" has a box for every character.
    return ((e.name, e.fname) for e in entries if not e.name.startswith("Last Resort"))


def _had_by(path: str, characters: frozenset[str]) -> frozenset[str]:
    """The characters that are in a font."""
    try:
        font = font_manager.get_font(path)
    except (OSError, RuntimeError):  # the font cannot be read
        return frozenset()
    return frozenset(c for c in characters if font.get_char_index(ord(c)))
