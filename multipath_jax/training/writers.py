"""Where measurements go: metrics.jsonl, the progress line, TensorBoard."""

import importlib.util
import json
import math
import os
import sys
import time

from etils import epath
from ml_collections import ConfigDict
from tqdm import tqdm

from multipath_jax.errors import UserError
from multipath_jax.training import processes
from multipath_jax.training.schedule import Plan

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_NEEDS = ("tensorflow", "tensorboard")  # clu's writer; the one does not bring the other

# What of it the progress line shows, and how.
SHOWN = {
    "train/loss": "loss {:.4f}",
    "train/error": "error {:.2f} %",
    "train/replaced": "{:,.0f} unreadable images replaced",
    "test/error": "test error {:.2f} %",
    "test/ten_crop_error": "of ten crops {:.2f} %",
    "images_per_second": "{:,.0f} images/s",
}


class MetricsFile:
    """``metrics.jsonl``: one JSON object a line, in the order of its key ``step``."""

    def __init__(self, workdir: epath.Path, last_step: int):
        """Opens the file to append; drops the lines past ``last_step``, which will come again.

        The file with the lines that stay replaces the old one at once, so a kill loses nothing.
        """
        path = workdir / METRICS_FILE
        kept = [line for line in read_metrics(workdir) if line["step"] <= last_step]
        new = path.with_suffix(".new")
        new.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(new, path)
        self._file = open(path, "a")  # noqa: SIM115  (open as long as the run)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Appends a line; it outlives this process once this returns. Not finite: null."""
        finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_metrics(workdir: epath.Path) -> list[dict]:
    """The lines of a workdir's ``metrics.jsonl``, less a last one that a kill cut short."""
    path = epath.Path(workdir) / METRICS_FILE
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(True) if line.endswith("\n")]


def seconds_of(lines: list[dict]) -> float:
    """The time that a run had taken when it wrote the last of these lines."""
    return lines[-1].get("seconds", 0.0) if lines else 0.0


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

    Of several processes the first alone writes and prints.
    """

    def __init__(
        self, config: ConfigDict, plan: Plan, workdir: epath.Path, step: int, name: str = ""
    ):
        """``step``: where the run begins or goes on; ``name``: of one run among several."""
        self._name = name
        self._plan, self._batch_size = plan, config.batch_size
        self._first = processes.is_first()
        self._writers = ()
        if self._first:
            self._writers = (TensorBoard(workdir, config.tensorboard), MetricsFile(workdir, step))
        self._start, self._begun = step, time.monotonic()
        self._images, self._seconds = 0, 0.0
        self._before = seconds_of(read_metrics(workdir))
        live = sys.stdout.isatty() and self._first
        self._bar = tqdm(
            total=plan.total,
            initial=step,
            desc=name or None,
            unit="step",
            disable=not live,
            dynamic_ncols=True,
        )

    def advance(self, step: int, steps: int, seconds: float) -> None:
        """Notes that ``steps`` more steps, up to ``step``, took so long."""
        self._images += steps * self._batch_size
        self._seconds += seconds
        self._bar.set_postfix_str(f"{self._images / self._seconds:,.0f} images/s", refresh=False)
        self._bar.update(step - self._bar.n)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes what was measured at ``step``; adds what the clock says.

        That is the images per second since the last time, without evaluation, and ``seconds``,
        the run's time so far with evaluation, over all its sittings up to the last line of each.
        """
        values = values | {"epoch": step / self._plan.steps_per_epoch}
        values["seconds"] = round(self._before + time.monotonic() - self._begun, 2)
        if self._seconds:
            values["images_per_second"] = float(f"{self._images / self._seconds:.6g}")
        self._images, self._seconds = 0, 0.0
        for writer in self._writers:
            writer.write(step, values)
        self.say(self._line(step, values))

    def _line(self, step: int, values: dict[str, float]) -> str:
        parts = [f"step {step}/{self._plan.total}", f"epoch {values['epoch']:.2f}"]
        parts += [form.format(values[key]) for key, form in SHOWN.items() if key in values]
        pace = (time.monotonic() - self._begun) / max(1, step - self._start)
        parts.append(f"{duration(pace * (self._plan.total - step))} left")
        return "  ".join(parts)

    def say(self, text: str) -> None:
        """Prints lines, above the bar if there is one."""
        text = f"{self._name}: {text}" if self._name else text
        if not self._first:
            return
        if self._bar.disable:
            print(text, flush=True)
        else:
            self._bar.write(text)

    def close(self) -> None:
        self._bar.close()
        for writer in self._writers:
            writer.close()


def duration(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
