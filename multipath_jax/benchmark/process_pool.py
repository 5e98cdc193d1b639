"""Contestants in separate processes, so that thread pools of different runtimes do not interfere.

All processes of a comparison exist at the same time, compiled and warmed up. A process only runs
when it is told to over its standard input, and otherwise blocks in a read, so that only one of them
uses the machine at a time. The processes time themselves.
"""

import json
import math
import os
import re
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

from multipath_jax.benchmark.timing import OutOfTime


class WorkerFailed(RuntimeError):
    """A worker process ended or did not start; the message is its last output."""


class Worker:
    """A process that runs `worker`; callable as a `timing.Contestant`.

    Attributes:
      ready: ``startup``, seconds from the launch to the end of the first step, and ``compile``,
        seconds of compilation (None if unknown).
    """

    def __init__(
        self,
        spec: dict[str, Any],
        environment: Mapping[str, str] | None = None,
        patience: float = math.inf,
        until: float = math.inf,
    ):
        """Starts the process and waits for its first step.

        Args:
          spec: what the worker runs (see `worker`).
          environment: environment variables, in addition to those of this process.
          patience: time limit for the first step, in seconds.
          until: time limit as a value of `time.monotonic`.

        Raises:
          WorkerFailed: the process ended, or its first step took longer than ``patience``.
          OutOfTime: ``until`` has passed.
        """
        self._until = until
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  (open as long as the worker)
        spec = spec | {"launched": time.time()}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "multipath_jax.benchmark.worker", json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=_environment() | dict(environment or {}),
        )
        try:
            self.ready: dict[str, float | None] = self._read(patience)
        except BaseException:
            self._process.kill()
            self.close()
            raise

    def __call__(self, calls: int) -> float:
        """Runs steps in the worker.

        Args:
          calls: number of steps.

        Returns:
          Seconds of all steps together.

        Raises:
          WorkerFailed: the process ended.
          OutOfTime: the time limit has passed.
        """
        try:
            self._process.stdin.write(f"{calls}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the reason is read below
        return self._read()["seconds"]

    def _read(self, patience: float = math.inf) -> dict[str, float | None]:
        left = min(patience, self._until - time.monotonic())
        wait = None if left == math.inf else max(0.0, left)
        if not select.select([self._process.stdout], [], [], wait)[0]:
            self._process.kill()
            if left < patience:
                raise OutOfTime
            raise WorkerFailed(f"its first step was not done within {patience:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise WorkerFailed(self._last_words())
        return json.loads(line)

    def _last_words(self) -> str:
        status = self._process.wait()
        self._log.seek(0)
        lines = self._log.read().strip().splitlines()
        # Some libraries print advice after the error.
        errors = [line for line in lines if re.match(r"[\w.]+(Error|Exception)\b", line)]
        return next(reversed(errors or lines), f"the process ended with status {status}")

    def close(self) -> None:
        """Ends the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            pipe.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _environment() -> dict[str, str]:
    return os.environ | {
        # Several processes share one accelerator.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        # OpenMP threads (of PyTorch) would otherwise spin for a while after each call.
        "OMP_WAIT_POLICY": "PASSIVE",
    }
