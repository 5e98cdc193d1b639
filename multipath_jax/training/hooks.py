"""Where measurements go: metrics.jsonl, the progress line, TensorBoard."""

import contextlib
import importlib.util
import json
import math
import os
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from etils import epath
from ml_collections import ConfigDict
from tqdm import tqdm

from multipath_jax.config.schedule import Plan
from multipath_jax.data.datasets import HELD_OUT, TEST
from multipath_jax.errors import Failure, UserError
from multipath_jax.parallel import processes
from multipath_jax.utils import jsonl, progress, storage

METRICS_FILE = "metrics.jsonl"
DROPPED_FILE = "metrics.dropped.jsonl"
TEXT_FILE = "train.log"
CURVES_FILE = "curves.png"  # drawn of the metrics when a run ends or stops
TENSORBOARD_NEEDS = ("tensorflow", "tensorboard")  # clu's writer; the one does not bring the other

# What is evaluated, by how the names of its metrics begin (`Dataset.evaluated`).
SPLITS = {TEST: "test", HELD_OUT: "held-out"}
# What of it the progress line shows, and how.
SHOWN = {
    "train/loss": "loss {:.4f}",
    "train/error": "error {:.2f} %",
    **{f"{split}/error": f"{name} error {{:.2f}} %" for split, name in SPLITS.items()},
    **{f"{split}/ten_crop_error": "of ten crops {:.2f} %" for split in SPLITS},
    **{f"{split}/flip_error": "with mirror images {:.2f} %" for split in SPLITS},
    "images_per_second": "{:,.0f} images/s",
}


class MetricsFile:
    """``metrics.jsonl``: one JSON object a line, in the order of its key ``step``.

    Attributes:
      dropped: how many lines were moved to ``metrics.dropped.jsonl``.
    """

    def __init__(self, workdir: epath.Path, last_step: int):
        """Opens the file to append; its lines are then those up to ``last_step``.

        The others, which will come again, and what is no line of it are moved to the end of
        ``metrics.dropped.jsonl``. A kill meanwhile loses nothing.
        """
        path = workdir / METRICS_FILE
        kept, dropped = [], []
        for text, line in jsonl.parse(_read(path), _is_measured):
            (kept if line and line["step"] <= last_step else dropped).append(text + b"\n")
        self.dropped = len(dropped)
        if dropped:
            storage.append(workdir / DROPPED_FILE, b"".join(dropped))
        storage.write(path, b"".join(kept))
        self._file = storage.Growing(path)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Appends a line; it outlives this process once this returns. Not finite: null."""
        finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")

    def close(self) -> None:
        self._file.close()


def read_metrics(workdir: epath.Path) -> list[dict]:
    """The lines of a workdir's ``metrics.jsonl``, less those that are none (`jsonl.parse`)."""
    text = _read(epath.Path(workdir) / METRICS_FILE)
    return [line for _, line in jsonl.parse(text, _is_measured) if line]


def _read(path: epath.Path) -> bytes:
    return storage.read(path) if storage.exists(path) else b""


def _is_measured(line: dict[str, Any]) -> bool:
    """Whether it is as `MetricsFile.write` writes them: a step, and finite numbers or null."""
    numbers = [value for value in line.values() if value is not None]
    return isinstance(line.get("step"), int) and all(
        isinstance(value, int | float) and abs(value) <= sys.float_info.max for value in numbers
    )


def seconds_of(lines: list[dict]) -> float:
    """The time that a run had taken when it wrote the last of these lines."""
    return (lines[-1].get("seconds") if lines else None) or 0.0


class TensorBoard:
    """TensorBoard's files, through clu, which imports TensorFlow: only where it is wanted."""

    def __init__(self, workdir: epath.Path, wanted: str):
        """``wanted``: on, off, or auto (if TensorFlow is installed).

        Raises:
          UserError: wanted but not installed.
        """
        missing = [name for name in TENSORBOARD_NEEDS if importlib.util.find_spec(name) is None]
        if wanted == "on" and missing:
            raise UserError(
                f"tensorboard=on needs {' and '.join(missing)}: pip install 'multipath_jax[tf]'"
            )
        self._writer = None
        if not missing and wanted != "off":
            from clu.metric_writers import SummaryWriter

            self._writer = SummaryWriter(os.fspath(workdir))

    def write(self, step: int, values: dict[str, float]) -> None:
        if self._writer:
            self._writer.write_scalars(step, values)

    def close(self) -> None:
        if self._writer:
            self._writer.close()


class Log:
    """All of these for one run: a live bar on a terminal, plain lines in a log file.

    What it prints is in the workdir's ``train.log`` too, with the time, over all sittings. Of
    several processes the first alone writes and prints. A context, which is closed in the end.
    """

    def __init__(
        self, config: ConfigDict, plan: Plan, workdir: epath.Path, step: int, name: str = ""
    ):
        """``step``: where the run begins or goes on; ``name``: of one run among several."""
        self._name = name
        self._plan, self._batch_size = plan, config.batch_size
        self._first = processes.is_first()
        self._writers, self._text = (), None
        dropped = 0
        if self._first:
            self._text = storage.Growing(workdir / TEXT_FILE)
            self._note(f"process {os.getpid()} on {socket.gethostname()}")
            tensorboard, metrics = (
                TensorBoard(workdir, config.tensorboard),
                MetricsFile(workdir, step),
            )
            self._writers, dropped = (tensorboard, metrics), metrics.dropped
        self._start, self._begun = step, time.monotonic()
        self._first_steps: float | None = None  # when they began; compiling comes before
        self._images, self._seconds = 0, 0.0
        self._before = seconds_of(read_metrics(workdir))
        live = progress.on_terminal() and self._first
        self._bar = tqdm(
            total=plan.total,
            initial=step,
            desc=name or None,
            unit="step",
            disable=not live,
            dynamic_ncols=True,
        )
        if dropped:
            self.say(
                f"moved from {METRICS_FILE} to {workdir / DROPPED_FILE}: what was past step {step} "
                f"or unreadable, lines: {dropped}"
            )

    def advance(self, step: int, steps: int, seconds: float, loss: Callable[[], float]) -> None:
        """Notes that ``steps`` more steps, up to ``step``, took so long.

        Where there is no bar, a line says so if there was none for a while.

        Args:
          loss: gives the mean since the last measurements were written.
        """
        if self._first_steps is None:
            self._first_steps = time.monotonic() - seconds
        self._images += steps * self._batch_size
        self._seconds += seconds
        self._bar.set_postfix_str(f"{self._images / self._seconds:,.0f} images/s", refresh=False)
        self._bar.update(step - self._bar.n)
        if self._first and self._bar.disable and progress.is_due():
            self.say(self._line(step, self._at(step) | {"train/loss": loss()}))

    def _at(self, step: int) -> dict[str, float]:
        """The epoch, and the images per second since the last measurements were written."""
        values = {"epoch": step / self._plan.steps_per_epoch}
        if self._seconds:
            values["images_per_second"] = float(f"{self._images / self._seconds:.6g}")
        return values

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes what was measured at ``step``; adds what the clock says.

        That is the images per second since the last time, without evaluation, and ``seconds``,
        the run's time so far with evaluation, over all its sittings up to the last line of each.
        """
        values = values | self._at(step)
        values["seconds"] = round(self._before + time.monotonic() - self._begun, 2)
        self._images, self._seconds = 0, 0.0
        for writer in self._writers:
            writer.write(step, values)
        self.say(self._line(step, values))

    def _line(self, step: int, values: dict[str, float]) -> str:
        parts = [f"step {step}/{self._plan.total}", f"epoch {values['epoch']:.2f}"]
        parts += [form.format(values[key]) for key, form in SHOWN.items() if key in values]
        begun = self._begun if self._first_steps is None else self._first_steps
        pace = (time.monotonic() - begun) / max(1, step - self._start)
        parts.append(f"{progress.duration(pace * (self._plan.total - step))} left")
        return "  ".join(parts)

    def say(self, text: str) -> None:
        """Prints lines, above the bar if there is one."""
        if not self._first:
            return
        self._note(text)
        text = f"{self._name}: {text}" if self._name else text
        if self._bar.disable:
            progress.say(text)
        else:
            self._bar.write(text)

    def _note(self, text: str) -> None:
        """Adds lines to ``train.log``."""
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        self._text.write("".join(f"{now}  {line}\n" for line in text.splitlines()))

    def close(self) -> None:
        self._bar.close()
        for writer in (*self._writers, self._text):
            if writer:
                writer.close()

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, _: object) -> None:
        """Notes the error that ends the run, if one does."""
        if error is not None and self._first:
            with contextlib.suppress(OSError, Failure):  # which may be of the same cause
                self._note(f"ended by {type(error).__name__}: {error}")
        self.close()
