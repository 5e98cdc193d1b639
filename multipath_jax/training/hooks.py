"""Hooks of the training loop: logs, metrics.jsonl, TensorBoard, checkpoints, profiles, user hooks.

Each is a `LoopHook`; `training.run.Run` sets their order.
"""

import contextlib
import importlib.util
import json
import math
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from etils import epath
from tqdm import tqdm

from multipath_jax.config.schedule import Plan
from multipath_jax.errors import Failure, UserError
from multipath_jax.metrics_file import (
    DROPPED_FILE,
    METRICS_FILE,
    SPLITS,
    Metrics,
    errors_by_set,
    seconds_of,
    split_lines,
)
from multipath_jax.parallel import processes
from multipath_jax.utils import progress, storage

TEXT_FILE = "train.log"
TRACES = "profile"  # a folder
CURVES_FILE = "curves.png"  # written when a run ends or stops
TENSORBOARD_NEEDS = ("tensorflow", "tensorboard")  # packages that clu's writer imports

# The metrics in the progress line, with their formats.
SHOWN = {
    "train/loss": "loss {:.4f}",
    "train/error": "error {:.2f} %",
    **{f"{split}/error": f"{name} error {{:.2f}} %" for split, name in SPLITS.items()},
    **{f"{split}/ten_crop_error": "of ten crops {:.2f} %" for split in SPLITS},
    **{f"{split}/flip_error": "with mirror images {:.2f} %" for split in SPLITS},
    "images_per_second": "{:,.0f} images/s",
}


class LoopHook:
    """Base class of hooks; methods that are not overridden do nothing.

    For every group of steps, the loop calls `before_steps`, runs the steps, calls `after_steps`,
    computes the metrics that are due, and calls the hook itself.
    """

    def before_steps(self, step: int) -> None:
        """Called before steps.

        Args:
          step: number of steps taken so far.
        """

    def after_steps(self, step: int, count: int, seconds: float) -> None:
        """Called after steps.

        Args:
          step: number of steps taken so far.
          count: number of steps in this group.
          seconds: time of this group.
        """

    def __call__(self, step: int, metrics: Metrics) -> None:
        """Called with the metrics.

        Args:
          step: number of steps taken so far.
          metrics: the metrics of this step; empty if none are due.
        """

    def close(self) -> None:
        """Called at the end of the run."""


class Hooks(LoopHook):
    """A sequence of hooks as one hook."""

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
        """Closes all hooks in reverse order, even if some of them fail."""
        with contextlib.ExitStack() as stack:
            for hook in self._hooks:
                stack.callback(hook.close)


class UserHook(LoopHook):
    """A function ``hook(step, metrics)``, called by process 0 whenever there are metrics."""

    def __init__(self, hook: Callable[[int, Metrics], Any]):
        self._hook = hook

    def __call__(self, step: int, metrics: Metrics) -> None:
        if metrics and processes.is_first():
            self._hook(step, dict(metrics))  # a copy, which the function may change


class Checkpointing(LoopHook):
    """Saves checkpoints at intervals, and after every evaluation with the lowest error so far."""

    def __init__(
        self,
        plan: Plan,
        evaluated: str,
        best_error: float | None,
        save: Callable[[float | None], None],
        counts: Callable[[], bool] = lambda: True,
    ):
        """Sets up the hook.

        Args:
          plan: the intervals.
          evaluated: the split whose errors are compared.
          best_error: the lowest error so far in percent; None if there is none.
          save: called with the error of this step in percent; None if it was not measured or does
            not count.
          counts: whether the error of this step counts.
        """
        self._plan, self._save, self._error = plan, save, f"{evaluated}/error"
        self._counts = counts
        self._best_error = math.inf if best_error is None else best_error

    def __call__(self, step: int, metrics: Metrics) -> None:
        error = metrics.get(self._error) if self._counts() else None
        is_best = error is not None and error <= self._best_error
        if is_best or self._plan.due(self._plan.checkpoint_every, step):
            self._save(error)
        if is_best:
            self._best_error = error


class Profiler(LoopHook):
    """Traces a range of steps (``config.profile``) into ``workdir/profile``.

    The folder can be opened with TensorBoard's profile plugin, and its ``perfetto_trace.json.gz``
    with https://ui.perfetto.dev. If the run ends within the range, the trace ends there.
    """

    def __init__(
        self, workdir: epath.Path, window: tuple[int, int] | None, say: Callable[[str], None]
    ):
        """Sets up the hook.

        Args:
          workdir: the workdir of the run.
          window: the trace starts after the first of these steps and ends after the second; None:
            no trace.
          say: prints a line.
        """
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
        options.python_tracer_level = 0  # calls in Python would crowd out the devices
        with storage.filled(self._folder) as folder:
            jax.profiler.start_trace(folder, create_perfetto_trace=True, profiler_options=options)
            try:
                yield
            finally:
                jax.profiler.stop_trace()
        steps = "-".join(map(str, self._window))
        self._say(f"wrote a trace of the steps {steps} to {self._folder}")


class MetricsFile(LoopHook):
    """Writes ``metrics.jsonl``, one JSON object per line, in increasing order of the key ``step``.

    Attributes:
      notes: lines to print about lines that were moved to ``metrics.dropped.jsonl``.
      seconds: the training time up to the last line.
    """

    def __init__(self, workdir: epath.Path, last_step: int):
        """Opens the file for appending, with the lines up to ``last_step``.

        Later lines, which the run will write again, and broken lines are moved to the end of
        ``metrics.dropped.jsonl``. Nothing is lost if the process is killed meanwhile.
        """
        kept, dropped = split_lines(workdir, last_step)
        self.notes, self.seconds = [], seconds_of([line for _, line in kept])
        if dropped:
            storage.append(workdir / DROPPED_FILE, b"".join(dropped))
            self.notes = [
                f"moved from {METRICS_FILE} to {workdir / DROPPED_FILE}: what was past step "
                f"{last_step} or unreadable, lines: {len(dropped)}"
            ]
        path = workdir / METRICS_FILE
        storage.write(path, b"".join(text for text, _ in kept))
        self._file = storage.Growing(path)

    def __call__(self, step: int, metrics: Metrics) -> None:
        """Appends a line, which is on disk when this returns; non-finite values are null."""
        if metrics:
            finite = {k: v if math.isfinite(v) else None for k, v in metrics.items()}
            self._file.write(json.dumps({"step": step, **finite}) + "\n")

    def close(self) -> None:
        self._file.close()


def _shown(metrics: Metrics) -> Iterator[str]:
    """The metrics as phrases of the progress line; errors by data set in parentheses."""
    by_set = errors_by_set(metrics)
    each = ", ".join(f"{name} {metrics[key]:.2f} %" for name, key in by_set.items())
    for key, form in SHOWN.items():
        if key in metrics:
            whole = key.removesuffix("/error") in SPLITS
            yield form.format(metrics[key]) + (f" ({each})" if each and whole else "")


class TensorBoard(LoopHook):
    """Writes TensorBoard files with clu, which imports TensorFlow, so only on request."""

    def __init__(self, workdir: epath.Path, wanted: str):
        """Opens the files.

        Args:
          workdir: the workdir of the run.
          wanted: on, off, or auto (if TensorFlow is installed).

        Raises:
          UserError: the packages are missing and ``wanted`` is on.
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
    """Measures throughput and training time, and estimates the remaining time."""

    def __init__(self, plan: Plan, batch_size: int, step: int, before: float = 0.0):
        """Starts the clock.

        Args:
          plan: the durations of the run.
          batch_size: number of images per step.
          step: number of steps taken so far.
          before: training time so far, in seconds.
        """
        self._plan, self._batch_size = plan, batch_size
        self._start, self._before, self._begun = step, before, time.monotonic()
        self._first_steps: float | None = None  # start of the first steps, after the compilation
        self._images, self._seconds = 0, 0.0

    def after_steps(self, step: int, count: int, seconds: float) -> None:
        if self._first_steps is None:
            self._first_steps = time.monotonic() - seconds
        self._images += count * self._batch_size
        self._seconds += seconds

    def so_far(self, step: int) -> Metrics:
        """The epoch, and the images per second since the last metrics, without evaluation."""
        values = {"epoch": step / self._plan.steps_per_epoch}
        if self._seconds:
            values["images_per_second"] = float(f"{self._images / self._seconds:.6g}")
        return values

    def measured(self, step: int) -> Metrics:
        """As `so_far`, with the training time ``seconds``; restarts the count of images.

        The training time includes evaluation, and earlier processes up to their last metrics.
        """
        values = self.so_far(step)
        values["seconds"] = round(self._before + time.monotonic() - self._begun, 2)
        self._images, self._seconds = 0, 0.0
        return values

    def left(self, step: int) -> float:
        """The estimated seconds to the end, at the mean pace of this process."""
        begun = self._begun if self._first_steps is None else self._first_steps
        pace = (time.monotonic() - begun) / max(1, step - self._start)
        return pace * (self._plan.total - step)


class Log(LoopHook):
    """Prints the progress of a run: a bar on a terminal, otherwise lines; a context manager.

    All lines are also appended to ``train.log`` in the workdir, with the time. Only process 0
    prints and writes.
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
        """Draws the bar and opens ``train.log``.

        Args:
          plan: the durations of the run.
          clock: its clock, a hook that is called before this one.
          workdir: its workdir.
          step: number of steps taken so far.
          loss: returns the mean loss since the last metrics.
          name: prefix of the lines, if there are several runs.
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
        """Updates the bar; without a bar, prints a line if there was none for a while."""
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
        """Prints lines, above the bar if there is one, and appends them to ``train.log``."""
        if not self._first:
            return
        self._note(text)
        text = f"{self._name}: {text}" if self._name else text
        if self._bar.disable:
            progress.say(text)
        else:
            self._bar.write(text)

    def _note(self, text: str) -> None:
        """Appends lines to ``train.log``."""
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        if self._text:
            self._text.write("".join(f"{now}  {line}\n" for line in text.splitlines()))

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, _: object) -> None:
        """Appends the error that ends the run to ``train.log``, if there is one."""
        if error is not None:
            with contextlib.suppress(OSError, Failure):  # perhaps for the same reason
                self._note(f"ended by {type(error).__name__}: {error}")
        self._bar.close()
        if self._text:
            self._text.close()
