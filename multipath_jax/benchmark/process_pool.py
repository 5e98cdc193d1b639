"""Contestants in processes of their own, so that the thread pools of two runtimes do not fight.

All processes of a comparison live at once, and each has compiled and warmed up; but a process
runs only when it is told to over its standard input, and until then sleeps in a read. So one of
them has the machine at a time, and they can take turns as functions do. They time themselves.
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
    """A worker ended, or never began; the message is what it last said."""


class Worker:
    """A process that runs `worker`; called, a `timing.Contestant`.

    Attributes:
      ready: what the worker said once its first step was done: ``startup`` (seconds since it was
        launched) and ``compile`` (seconds, where it is known).
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
          environment: variables that it has beside, or in place of, those of this process.
          patience: seconds in which its first step is to be done.
          until: the reading of `time.monotonic` up to which it is waited for.

        Raises:
          WorkerFailed: it ended, or took too long.
          OutOfTime: ``until`` is past.
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
        """Lets the worker run so many steps; the seconds that they took.

        Raises:
          WorkerFailed: it ended.
          OutOfTime: there was no answer in time.
        """
        try:
            self._process.stdin.write(f"{calls}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # what it died of is read below
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
        # After the error itself some libraries go on with advice.
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
        # Several processes share one accelerator: none may take the memory of the others.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        # OpenMP's threads (PyTorch's) would go on spinning for a while after their turn.
        "OMP_WAIT_POLICY": "PASSIVE",
    }
