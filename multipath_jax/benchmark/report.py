"""The output of the benchmark: a table on the terminal and a JSON file."""

import datetime
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from multipath_jax.benchmark.rows import Row
from multipath_jax.benchmark.settings import Settings
from multipath_jax.utils.filesystem import replacing
from multipath_jax.utils.tables import aligned

SCHEMA = 1  # version of the JSON file; changes if the meaning of a key changes
PACKAGES = ("multipath_jax", "jax", "jaxlib", "flax", "optax", "numpy", "torch")


def environment(settings: Settings) -> dict[str, Any]:
    """The device, versions, date and settings of the measurements."""
    device = jax.devices()[0]
    return {
        "schema": SCHEMA,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": {
            "platform": device.platform,
            "kind": device.device_kind if device.platform != "cpu" else _processor(),
            "count": jax.device_count(),
            "cores": len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count(),
            "system": platform.platform(),
        },
        "versions": {"python": platform.python_version(), **_versions()},
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "quick": settings.quick,
        "dtype": settings.dtype,
        "rounds": settings.rounds,
    }


def _processor() -> str:
    """The name of the processor, if known."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def heading(about: dict[str, Any]) -> str:
    """The two heading lines of the table."""
    device, versions = about["device"], about["versions"]
    cores = f", {device['cores']} CPU cores" if device["platform"] == "cpu" else ""
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"{device['kind']} ({device['platform']}{cores}), {about['dtype']}, {about['date'][:10]}\n"
        f"{listed}"
    )


def lines(row: Row) -> Iterator[str]:
    """Formats a row: ratio, quartiles and target, and below it the figures and the note."""
    ratio, spread, target = "-", "", ""
    if row.ratio is not None:
        ratio = number(row.ratio.median)
        spread = f"({number(row.ratio.low)} to {number(row.ratio.high)})"
    if row.target is not None:
        verdict = (row.verdict or "").replace("missed", "MISSED")
        target = f"[{row.target} {verdict}]".replace(" ]", "]")
    # As wide as the others, which are not yet known.
    cells = [[ratio, spread, target, f"{row.subject}: {row.compared}".rstrip()]]
    yield aligned(cells, left=(1, 2, 3), widths=(9, 16, 14))
    figures = ", ".join(_figure(name, value) for name, value in row.figures.items())
    for text in (figures, row.note):
        if text:
            yield f"{'':10}{text}"


def _figure(name: str, value: float | int | None) -> str:
    words = name.rsplit(" ", 1)
    text = "unknown" if value is None else number(value)
    return f"{words[0]} {text} {words[1]}" if len(words) == 2 else f"{name} {text}"


def number(value: float | int) -> str:
    """Formats a number with about three significant digits; integers exactly."""
    if isinstance(value, int):
        return f"{value:,}"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{1 if abs(value) >= 10 else 2 if abs(value) >= 0.1 else 4}f}"


def write_json(path: Path, about: dict[str, Any], rows: Sequence[tuple[str, Row]]) -> None:
    """Writes all rows with their parts to a JSON file."""
    document = about | {"rows": [row.as_json(part) for part, row in rows]}
    with replacing(path) as new:
        new.write_text(json.dumps(document, indent=2) + "\n")
