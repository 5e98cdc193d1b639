"""Files of one JSON object a line: what is whole is read, what is not is passed over and kept."""

import json
from collections.abc import Callable, Iterator
from typing import Any


def parse(
    text: bytes, is_entry: Callable[[dict[str, Any]], bool]
) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """The lines of a file that are not blank, each with the object that it holds.

    A line that a kill cut short, that an editor or a merge spoiled, or that ``is_entry`` does not
    recognize holds None: readers pass over it, and writers keep it.

    Args:
      is_entry: whether an object is one of those that the file is of.

    Yields:
      The bytes of a line, without its end, and its object.
    """
    for line in text.split(b"\n"):
        if line.strip():
            yield line, _entry(line, is_entry)


def _entry(line: bytes, is_entry: Callable[[dict[str, Any]], bool]) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):  # broken, not UTF-8, or too deep
        return None
    return found if isinstance(found, dict) and is_entry(found) else None
