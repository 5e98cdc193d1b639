"""What the loop calls: the progress line, metrics.jsonl, TensorBoard, checkpoints, users' hooks.

Each is a `LoopHook`; `training.run.Run` puts them in their order.
"""

import contextlib
import importlib.util
import json
import math
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
from etils import epath
from tqdm import tqdm

from multipath_jax.config.schedule import Plan
from multipath_jax.data.datasets import HELD_OUT, TEST
from multipath_jax.errors import Failure, UserError
from multipath_jax.parallel import processes
from multipath_jax.utils import jsonl, progress, storage

METRICS_FILE = "metrics.jsonl"
DROPPED_FILE = "metrics.dropped.jsonl"
TEXT_FILE = "train.log"
TRACES = "profile"  # a folder
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

Metrics = dict[str, float]  # by the names of ``metrics.jsonl``


class LoopHook:
    """What the loop calls around the compiled steps; a method that is not overridden does nothing.

    For every call of the compiled steps these come in turn: `before_steps`, the steps,
    `after_steps`, the measurements that the plan names, and the call of the hook itself.
    """

    def before_steps(self, step: int) -> None:
        """Steps follow; ``step`` are taken so far."""

    def after_steps(self, step: int, count: int, seconds: float) -> None:
        """``count`` more steps, up to ``step``, took so long."""

    def __call__(self, step: int, metrics: Metrics) -> None:
        """``metrics`` are of the steps up to ``step``; empty where the plan measures nothing."""

    def close(self) -> None:
        """The run ends."""


class Hooks(LoopHook):
    """Several as one, in their order."""

    def __init__(self, hooks: Sequence[LoopHook]):
        self._hooks = tuple(hooks)

    def before_steps(self, step: int) -> None:
        for hook in self._hooks:
            hook.before_steps(step)

    def after_steps(self, step: int, count: int, seconds: float) -> None:
        for hook in self._hooks:
            hook.after_steps(step, count, seconds)

    def __call__(self, step: int, metrics: Metrics) -> None:
        for hook in self._hooks:
            hook(step, metrics)

    def close(self) -> None:
        """Closes all, whichever of them fails, the last first."""
        with contextlib.ExitStack() as stack:
            for hook in self._hooks:
                stack.callback(hook.close)


class UserHook(LoopHook):
    """A function ``hook(step, metrics)``: called where there are metrics, by the first process."""

    def __init__(self, hook: Callable[[int, Metrics], Any]):
        self._hook = hook

    def __call__(self, step: int, metrics: Metrics) -> None:
        if metrics and processes.is_first():
            self._hook(step, dict(metrics))  # its own: it may change them


class Checkpointing(LoopHook):
    """Saves where the plan says so, and after an evaluation with the lowest error so far."""

    def __init__(
        self,
        plan: Plan,
        evaluated: str,
        best_error: float | None,
        save: Callable[[float | None], None],
    ):
        """No checkpoint is written yet.

        Args:
          evaluated: the split whose errors are compared.
          best_error: the lowest so far, in %.
          save: called with the error of this step in %, or None where it was not measured.
        """
        self._plan, self._save, self._error = plan, save, f"{evaluated}/error"
        self._best_error = math.inf if best_error is None else best_error

    def __call__(self, step: int, metrics: Metrics) -> None:
        error = metrics.get(self._error)
        is_best = error is not None and error <= self._best_error
        if is_best or self._plan.due(self._plan.checkpoint_every, step):
            self._save(error)
        if is_best:
            self._best_error = error


class Profiler(LoopHook):
    """``config.profile``: what host and devices do between two steps, into ``workdir/profile``.

    TensorBoard (with its profile plugin) opens that folder; https://ui.perfetto.dev opens the
    ``perfetto_trace.json.gz`` in it. What is being recorded when the run ends is written too.
    """

    def __init__(
        self, workdir: epath.Path, window: tuple[int, int] | None, say: Callable[[str], None]
    ):
        """``window``: the first step that is not yet taken when the trace begins, and the last."""
        self._folder, self._window, self._say = workdir / TRACES, window, say
        self._recording = contextlib.ExitStack()

    def before_steps(self, step: int) -> None:
        if self._window and step == self._window[0]:
            self._recording.enter_context(self._recorded())

    def after_steps(self, step: int, count: int, seconds: float) -> None:
        if self._window and step == self._window[1]:
            self.close()

    def close(self) -> None:
        self._recording.close()

    @contextlib.contextmanager
    def _recorded(self) -> Iterator[None]:
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # every call in Python would bury the device's work
        with storage.filled(self._folder) as folder:
            jax.profiler.start_trace(folder, create_perfetto_trace=True, profiler_options=options)
            try:
                yield
            finally:
                jax.profiler.stop_trace()
        steps = "-".join(map(str, self._window))
        self._say(f"wrote a trace of the steps {steps} to {self._folder}")


class MetricsFile(LoopHook):
    """``metrics.jsonl``: one JSON object a line, in the order of its key ``step``.

    Attributes:
      notes: what to say of lines that were moved to ``metrics.dropped.jsonl``.
      seconds: the time that the run had taken when it wrote the last of its lines.
    """

    def __init__(self, workdir: epath.Path, last_step: int):
        """Opens the file to append; its lines are then those up to ``last_step``.

        The others, which will come again, and what is no line of it are moved to the end of
        ``metrics.dropped.jsonl``. A kill meanwhile loses nothing.
        """
        path = workdir / METRICS_FILE
        kept, dropped, lines = [], [], []
        for text, line in jsonl.parse(_read(path), _is_measured):
            if line and line["step"] <= last_step:
                kept.append(text + b"\n")
                lines.append(line)
            else:
                dropped.append(text + b"\n")
        self.notes, self.seconds = [], seconds_of(lines)
        if dropped:
            storage.append(workdir / DROPPED_FILE, b"".join(dropped))
            self.notes = [
                f"moved from {METRICS_FILE} to {workdir / DROPPED_FILE}: what was past step "
                f"{last_step} or unreadable, lines: {len(dropped)}"
            ]
        storage.write(path, b"".join(kept))
        self._file = storage.Growing(path)

    def __call__(self, step: int, metrics: Metrics) -> None:
        """Appends a line; it outlives this process once this returns. Not finite: null."""
        if metrics:
            finite = {k: v if math.isfinite(v) else None for k, v in metrics.items()}
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
    """Whether it is as `MetricsFile` writes them: a step, and finite numbers or null."""
    numbers = [value for value in line.values() if value is not None]
    return isinstance(line.get("step"), int) and all(
        isinstance(value, int | float) and abs(value) <= sys.float_info.max for value in numbers
    )


def seconds_of(lines: list[dict]) -> float:
    """The time that a run had taken when it wrote the last of these lines."""
    return (lines[-1].get("seconds") if lines else None) or 0.0


def _shown(metrics: Metrics) -> Iterator[str]:
    """What the progress line shows of metrics; behind an error, those of several data sets."""
    by_set = errors_by_set(metrics)
    each = ", ".join(f"{name} {metrics[key]:.2f} %" for name, key in by_set.items())
    for key, form in SHOWN.items():
        if key in metrics:
            whole = key.removesuffix("/error") in SPLITS
            yield form.format(metrics[key]) + (f" ({each})" if each and whole else "")


def errors_by_set(keys: Iterable[str]) -> dict[str, str]:
    """The keys of the errors of several data sets, such as ``test/cifar10/error``, by name."""
    found = {}
    for key in keys:
        split, _, rest = key.partition("/")
        name, _, measure = rest.rpartition("/")
        if split in SPLITS and name and measure == "error":
            found[name] = key
    return found


class TensorBoard(LoopHook):
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

    def __call__(self, step: int, metrics: Metrics) -> None:
        if self._writer and metrics:
            self._writer.write_scalars(step, metrics)

    def close(self) -> None:
        if self._writer:
            self._writer.close()


class Clock(LoopHook):
    """Counts images and seconds, and says how long the rest will take."""

    def __init__(self, plan: Plan, batch_size: int, step: int, before: float = 0.0):
        """``step``: where the run begins or goes on; ``before``: its seconds until then."""
        self._plan, self._batch_size = plan, batch_size
        self._start, self._before, self._begun = step, before, time.monotonic()
        self._first_steps: float | None = None  # when they began; compiling comes before
        self._images, self._seconds = 0, 0.0

    def after_steps(self, step: int, count: int, seconds: float) -> None:
        if self._first_steps is None:
            self._first_steps = time.monotonic() - seconds
        self._images += count * self._batch_size
        self._seconds += seconds

    def so_far(self, step: int) -> Metrics:
        """The epoch, and the images per second since the last measurements, without evaluation."""
        values = {"epoch": step / self._plan.steps_per_epoch}
        if self._seconds:
            values["images_per_second"] = float(f"{self._images / self._seconds:.6g}")
        return values

    def measured(self, step: int) -> Metrics:
        """The same at measurements, from which on it counts anew, and ``seconds``.

        These are the run's with evaluation, over all its sittings up to the last line of each.
        """
        values = self.so_far(step)
        values["seconds"] = round(self._before + time.monotonic() - self._begun, 2)
        self._images, self._seconds = 0, 0.0
        return values

    def left(self, step: int) -> float:
        """The seconds until the end, at the mean pace of the steps so far."""
        begun = self._begun if self._first_steps is None else self._first_steps
        pace = (time.monotonic() - begun) / max(1, step - self._start)
        return pace * (self._plan.total - step)


class Log(LoopHook):
    """A live bar on a terminal, plain lines in a log file.

    What it prints is in the workdir's ``train.log`` too, with the time, over all sittings. Of
    several processes the first alone writes and prints. A context, which is closed in the end.
    """

    def __init__(
        self,
        plan: Plan,
        clock: Clock,
        workdir: epath.Path,
        step: int,
        loss: Callable[[], float],
        name: str = "",
    ):
        """Begins the bar, and opens ``train.log``.

        Args:
          clock: is called before this.
          step: where the run begins or goes on.
          loss: gives the mean since the last measurements.
          name: of one run among several.
        """
        self._plan, self._clock, self._loss, self._name = plan, clock, loss, name
        self._first = processes.is_first()
        self._text = storage.Growing(workdir / TEXT_FILE) if self._first else None
        self._note(f"process {os.getpid()} on {socket.gethostname()}")
        self._bar = tqdm(
            total=plan.total,
            initial=step,
            desc=name or None,
            unit="step",
            disable=not (progress.on_terminal() and self._first),
            dynamic_ncols=True,
        )

    def after_steps(self, step: int, count: int, seconds: float) -> None:
        """Where there is no bar, a line says how far the run is if there was none for a while."""
        now = self._clock.so_far(step)
        self._bar.set_postfix_str(
            SHOWN["images_per_second"].format(now["images_per_second"]), False
        )
        self._bar.update(step - self._bar.n)
        if self._first and self._bar.disable and progress.is_due():
            self.say(self._line(step, now | {"train/loss": self._loss()}))

    def __call__(self, step: int, metrics: Metrics) -> None:
        if metrics:
            self.say(self._line(step, metrics))

    def _line(self, step: int, metrics: Metrics) -> str:
        parts = [f"step {step}/{self._plan.total}", f"epoch {metrics['epoch']:.2f}"]
        parts += _shown(metrics)
        parts.append(f"{progress.duration(self._clock.left(step))} left")
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
        if self._text:
            self._text.write("".join(f"{now}  {line}\n" for line in text.splitlines()))

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, _: object) -> None:
        """Notes the error that ends the run, if one does."""
        if error is not None:
            with contextlib.suppress(OSError, Failure):  # which may be of the same cause
                self._note(f"ended by {type(error).__name__}: {error}")
        self._bar.close()
        if self._text:
            self._text.close()
