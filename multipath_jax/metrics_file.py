"""Reads ``metrics.jsonl``: the metrics of a run, one JSON object per line, by increasing step."""

import sys
from collections.abc import Iterable
from typing import Any

from etils import epath

from multipath_jax.data.datasets import HELD_OUT, TEST
from multipath_jax.utils import jsonl, storage

METRICS_FILE = "metrics.jsonl"
DROPPED_FILE = "metrics.dropped.jsonl"
# Labels of the evaluated images, by the prefix of their metrics (`Dataset.evaluated`).
SPLITS = {TEST: "test", HELD_OUT: "held-out"}
SOFT = "soft"  # in evaluations of a network whose discrete routers are still soft

Metrics = dict[str, float]  # by the keys of ``metrics.jsonl``


def read_metrics(workdir: epath.Path) -> list[dict]:
    """Reads the metrics of a run.

    Args:
      workdir: the workdir of the run.

    Returns:
      The content of all lines, without broken ones (`jsonl.parse`); empty if there is no file.
    """
    text = _read(epath.Path(workdir) / METRICS_FILE)
    return [line for _, line in jsonl.parse(text, _is_measured) if line]


def split_lines(
    workdir: epath.Path, last_step: int
) -> tuple[list[tuple[bytes, dict]], list[bytes]]:
    """Splits the file into the lines up to a step and the others.

    Args:
      workdir: the workdir of the run.
      last_step: the last step to keep.

    Returns:
      The text of each line to keep, with its content; the text of later and of broken lines.
    """
    kept, dropped = [], []
    for text, line in jsonl.parse(_read(workdir / METRICS_FILE), _is_measured):
        if line and line["step"] <= last_step:
            kept.append((text + b"\n", line))
        else:
            dropped.append(text + b"\n")
    return kept, dropped


def _read(path: epath.Path) -> bytes:
    return storage.read(path) if storage.exists(path) else b""


def _is_measured(line: dict[str, Any]) -> bool:
    """Whether a line has the form of metrics: a step, and finite numbers or null."""
    numbers = [value for value in line.values() if value is not None]
    return isinstance(line.get("step"), int) and all(
        isinstance(value, int | float) and abs(value) <= sys.float_info.max for value in numbers
    )


def counted(lines: Iterable[dict], key: str) -> list[dict]:
    """The lines with an error that counts for the best checkpoint: not of soft steps (`SOFT`).

    Args:
      lines: the lines of ``metrics.jsonl``.
      key: the key of the error.
    """
    return [line for line in lines if line.get(key) is not None and not line.get(SOFT)]


def seconds_of(lines: list[dict]) -> float:
    """The training time in seconds up to the last of these lines."""
    return (lines[-1].get("seconds") if lines else None) or 0.0


def errors_by_set(keys: Iterable[str]) -> dict[str, str]:
    """The keys of the errors of several data sets, such as ``test/cifar10/error``, by name."""
    found = {}
    for key in keys:
        split, _, rest = key.partition("/")
        name, _, measure = rest.rpartition("/")
        if split in SPLITS and name and measure == "error":
            found[name] = key
    return found
