"""Reading JSON Lines files, tolerating broken lines."""

import json
from collections.abc import Callable, Iterator
from typing import Any


def parse(
    text: bytes, is_entry: Callable[[dict[str, Any]], bool]
) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """Parses the lines of a file that are not blank.

    The object of a broken line (truncated by a kill, damaged by an editor or a merge), or of one
    that ``is_entry`` rejects, is None. Readers skip such lines, and writers keep them.

    Args:
      text: the content of the file.
      is_entry: whether an object is a valid entry.

    Yields:
      The bytes of a line, without its newline, and its object or None.
    """
    for line in text.split(b"\n"):
        if line.strip():
            yield line, _entry(line, is_entry)


def _entry(line: bytes, is_entry: Callable[[dict[str, Any]], bool]) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):  # invalid JSON, not UTF-8, or nested too deeply
        return None
    return found if isinstance(found, dict) and is_entry(found) else None
