"""Functions that damage a checkpoint."""

import pathlib


def files(folder):
    """The files below a folder, by decreasing size; the largest contain the arrays."""
    found = [path for path in pathlib.Path(folder).rglob("*") if path.is_file()]
    return sorted(found, key=lambda path: -path.stat().st_size)


def contents(folder):
    """The bytes of every file below a folder, by path."""
    return {path: path.read_bytes() for path in files(folder)}


def truncate(folder):
    for path in files(folder):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(folder):
    for path in files(folder):
        path.write_bytes(b"")


def remove(folder):
    for path in files(folder):
        path.unlink()


def flip(folder):
    """Flips a bit in the middle of the largest file of ``weights``, or of the folder without it."""
    inner = pathlib.Path(folder) / "weights"
    path = files(inner if inner.is_dir() else folder)[0]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)
