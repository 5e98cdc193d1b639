"""Ways in which a checkpoint is damaged after it was written."""

import pathlib


def files(folder):
    """Those below a folder, the largest, which hold the numbers, first."""
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
    """One bit in the middle of the largest file of the weights, or of what there is."""
    inner = pathlib.Path(folder) / "weights"
    path = files(inner if inner.is_dir() else folder)[0]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)
