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


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name (of one or more) that is most similar to ``name``."""
    return difflib.get_close_matches(name, list(known), n=1, cutoff=0)[0]
