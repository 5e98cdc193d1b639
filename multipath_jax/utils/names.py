"""Printing names that users chose, and finding the nearest of a set of known names."""

import difflib
import unicodedata
from collections.abc import Iterable


def printable(name: str) -> str:
    r"""Escapes control characters and bytes that are not UTF-8 (surrogates) in a name.

    A file that is named ``café`` in Latin-1 is printed as ``caf\xe9``.
    """
    return "".join(map(_escaped, name))


def _escaped(character: str) -> str:
    category = unicodedata.category(character)
    if category == "Cs":
        code = ord(character)
        return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"
    return character.encode("unicode_escape").decode() if category == "Cc" else character


def nearest(name: str, known: Iterable[str], count: int = 1, alike: float = 0.0) -> str:
    """The known names that are most similar to ``name``, for an error message.

    Args:
      name: the unknown name.
      known: the known names.
      count: the largest number of names.
      alike: the least similarity, from 0 to 1 (`difflib.SequenceMatcher.ratio`).

    Returns:
      The names separated by commas, the most similar first; ``""`` if none is similar enough.
    """
    return ", ".join(difflib.get_close_matches(name, list(known), n=count, cutoff=alike))
