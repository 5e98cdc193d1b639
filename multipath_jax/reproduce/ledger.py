"""The ledger: one JSON line for every finished trial."""

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
NEEDED = {  # in addition to the keys of `identity`
    *("best_error", "final_error", "params", "epochs", "wall_seconds", "dtype", "date"),
}
Identity = tuple[Any, ...]


def identity(line: Line) -> Identity:
    """A hashable value that identifies the trial of a line (`tables.Campaign.trial`)."""
    names = ("recipe", "model", "column", "seed", "train_for")
    return *(line[name] for name in names), json.dumps(line["changed"], sort_keys=True)


class Ledger:
    """The ledger file in a folder; several processes may write to it concurrently."""

    def __init__(self, folder: os.PathLike | str):
        self.path = filesystem.local("--results", folder) / LEDGER_FILE
        self._reported: set[bytes] = set()  # invalid lines that have been reported

    def prepare(self) -> None:
        """Creates the folder. Raises UserError if it cannot be written."""
        try:
            with self._locked():
                pass
        except OSError as error:
            raise UserError(f"{self.path} cannot be written ({error.strerror})") from error

    def lines(self) -> list[Line]:
        """Reads the trials; invalid lines are skipped, and reported once (`jsonl.parse`).

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
        """Adds a trial, and waits until it is on disk.

        Returns:
          Whether the trial was added; False if it is in the ledger already.

        Raises:
          OSError: the disk is full; the file is unchanged.
        """
        with self._locked() as file:
            text = _read(file)
            if identity(line) in map(identity, self._parse(text)):
                return False
            new = json.dumps(line, sort_keys=True).encode() + b"\n"
            if text and not text.endswith(b"\n"):  # the last line is truncated
                new = b"\n" + new
            try:
                written = os.write(file, new)
                if written < len(new):
                    raise OSError(f"{self.path}: only a part of the line was written")
            except OSError:
                os.ftruncate(file, len(text))
                raise
            os.fsync(file)
            return True

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        """Context manager: opens the file for appending, with an exclusive lock.

        The lock is on the file itself and not, as with `filelock`, on one beside it: that would be
        left in a folder under version control.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
        finally:
            os.close(file)  # also releases the lock

    def _parse(self, text: bytes) -> list[Line]:
        found = list(jsonl.parse(text, _is_trial))
        broken = {line for line, trial in found if trial is None}
        for line in broken - self._reported:
            print(
                f"a line of {self.path} is not a trial, and is ignored: {line[:60]!r}",
                file=sys.stderr,
            )
        self._reported |= broken
        return [trial for _, trial in found if trial is not None]


def _is_trial(line: Line) -> bool:
    try:
        hash(identity(line))
    except (KeyError, TypeError, AttributeError):
        return False
    return line.keys() >= NEEDED


def _read(file: int) -> bytes:
    """Reads a whole file from its descriptor."""
    return os.pread(file, os.fstat(file).st_size, 0)
