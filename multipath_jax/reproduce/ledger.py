"""The ledger: one JSON line for every trial that has come to its end."""

import contextlib
import fcntl
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

from multipath_jax.errors import UserError
from multipath_jax.utils import filesystem, jsonl

LEDGER_FILE = "ledger.jsonl"
Line = dict[str, Any]
NEEDED = {  # beside the keys of `identity`
    *("best_error", "final_error", "params", "epochs", "wall_seconds", "dtype", "date"),
}
Identity = tuple[Any, ...]


def identity(line: Line) -> Identity:
    """What no two lines share (`protocol.Campaign.trial`)."""
    names = ("recipe", "model", "column", "seed", "train_for")
    return *(line[name] for name in names), json.dumps(line["changed"], sort_keys=True)


class Ledger:
    """The file of a folder; several processes may write it at once."""

    def __init__(self, folder: os.PathLike | str):
        self.path = filesystem.local("--results", folder) / LEDGER_FILE
        self._said: set[bytes] = set()  # the lines of which it was said that they are no trials

    def prepare(self) -> None:
        """Makes the folder. Raises UserError where nothing can be written."""
        try:
            with self._locked():
                pass
        except OSError as error:
            raise UserError(f"{self.path} cannot be written ({error.strerror})") from error

    def lines(self) -> list[Line]:
        """The trials; what is no trial is passed over, said once, and stays (`jsonl.parse`).

        Raises:
          UserError: the file cannot be read.
        """
        try:
            text = self.path.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UserError(f"{self.path} cannot be read ({error.strerror})") from error
        return self._parse(text)

    def append(self, line: Line) -> bool:
        """Adds a trial, on disk when this returns; False if it is there already.

        Raises:
          OSError: the disk is full; the file is as it was.
        """
        with self._locked() as file:
            text = _read(file)
            if identity(line) in map(identity, self._parse(text)):
                return False
            new = json.dumps(line, sort_keys=True).encode() + b"\n"
            if text and not text.endswith(b"\n"):  # an editor left it out, or a kill cut it short
                new = b"\n" + new
            try:
                written = os.write(file, new)
                if written < len(new):
                    raise OSError(f"{self.path}: the disk took a part of the line only")
            except OSError:
                os.ftruncate(file, len(text))
                raise
            os.fsync(file)
            return True

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        """The file, open to append, for this process alone.

        The lock is on the file itself, which `filelock` warns against: one beside it would be left
        in a folder that is kept under version control, and campaigns of an earlier version, which
        take this one, may be writing the same ledger.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
        finally:
            os.close(file)  # and with it the lock

    def _parse(self, text: bytes) -> list[Line]:
        found = list(jsonl.parse(text, _is_trial))
        broken = {line for line, trial in found if trial is None}
        for line in broken - self._said:
            print(
                f"a line of {self.path} is no trial, and is left out: {line[:60]!r}",
                file=sys.stderr,
            )
        self._said |= broken
        return [trial for _, trial in found if trial is not None]


def _is_trial(line: Line) -> bool:
    try:
        hash(identity(line))
    except (KeyError, TypeError, AttributeError):
        return False
    return line.keys() >= NEEDED


def _read(file: int) -> bytes:
    """All of an open file."""
    return os.pread(file, os.fstat(file).st_size, 0)
