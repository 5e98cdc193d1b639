"""Names that users gave to files, folders and classes, made fit to be shown."""

import unicodedata


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
