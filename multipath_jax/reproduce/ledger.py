"""The ledger: one JSON line for every trial that has come to its end."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from multipath_jax.errors import UserError
from multipath_jax.reproduce.protocol import config_hash

LEDGER_FILE = "ledger.jsonl"
Line = dict[str, Any]
Identity = tuple[str, str, int, str]


def identity(line: Line) -> Identity:
    """What no two lines share: network, column, seed and recipe."""
    # Computed anew: what was written by an older program lacks the keys of today.
    return line["model"], line["column"], line["seed"], config_hash(line["config"])


class Ledger:
    """The file of a folder; several processes may write it at once."""

    def __init__(self, folder: os.PathLike | str):
        self.path = Path(folder).expanduser() / LEDGER_FILE

    def prepare(self) -> None:
        """Makes the folder. Raises UserError where nothing can be written."""
        try:
            with self._locked():
                pass
        except OSError as error:
            raise UserError(f"{self.path} cannot be written ({error.strerror})") from error

    def lines(self) -> list[Line]:
        """The trials, less a last line that a kill cut short.

        Raises:
          UserError: another line is no trial, or the file cannot be read.
        """
        try:
            text = self.path.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UserError(f"{self.path} cannot be read ({error.strerror})") from error
        return self._parse(text[: _whole(text)])

    def append(self, line: Line) -> bool:
        """Adds a trial, on disk when this returns; False if it is there already.

        Raises:
          OSError: the disk is full; the file is as it was.
        """
        with self._locked() as file:
            text = _read(file)
            whole = _whole(text)
            known = {identity(other) for other in self._parse(text[:whole])}
            if identity(line) in known:
                return False
            os.ftruncate(file, whole)  # half a line would spoil the next one too
            new = json.dumps(line, sort_keys=True).encode() + b"\n"
            if whole and text[whole - 1 : whole] != b"\n":  # an editor left it out
                new = b"\n" + new
            try:
                written = os.write(file, new)
                if written < len(new):
                    raise OSError(f"{self.path}: the disk took a part of the line only")
            except OSError:
                os.ftruncate(file, whole)
                raise
            os.fsync(file)
            return True

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        """The file, open to append, for this process alone."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
        finally:
            os.close(file)  # and with it the lock

    def _parse(self, text: bytes) -> list[Line]:
        lines = []
        for number, line in enumerate(text.splitlines(), 1):
            try:
                lines.append(json.loads(line))
                identity(lines[-1])
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(f"line {number} of {self.path} is no trial") from error
        return lines


def _read(file: int) -> bytes:
    """All of an open file."""
    return os.pread(file, os.fstat(file).st_size, 0)


def _whole(text: bytes) -> int:
    """The length without a last line that is cut short."""
    end = text.rfind(b"\n") + 1
    try:
        json.loads(text[end:])
    except ValueError:
        return end
    return len(text)
