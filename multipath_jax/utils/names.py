"""Names: those that users gave, made fit to be shown, and the nearest of those that are known."""

import difflib
import unicodedata
from collections.abc import Iterable


def shown(name: str) -> str:
    r"""A name on one line, of characters that any output takes.

    Bytes that are not UTF-8, which Python keeps as surrogates, and control characters are escaped:
    a file that Latin-1 called ``café`` is shown as ``caf\xe9``.
    """
    return "".join(map(_shown, name))


def _shown(character: str) -> str:
    category = unicodedata.category(character)
    if category == "Cs":
        code = ord(character)
        return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"
    return character.encode("unicode_escape").decode() if category == "Cc" else character


def nearest(name: str, known: Iterable[str], count: int = 1, alike: float = 0.0) -> str:
    """The known names that are most like ``name``, for an error's text.

    Args:
      count: how many at most.
      alike: from 0 to 1, how like they have to be (`difflib.SequenceMatcher.ratio`).

    Returns:
      The names separated by commas, the nearest first; ``""`` if none is alike.
    """
    return ", ".join(difflib.get_close_matches(name, list(known), n=count, cutoff=alike))
