"""Graceful stopping, requested by Ctrl-C, a scheduler's SIGTERM, or a time limit."""

import math
import os
import signal
import time

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopping:
    """Context manager: the first SIGINT or SIGTERM requests a graceful stop, the second interrupts.

    Calling it returns whether to stop, as `train` does with its ``should_stop``:

        with Stopping(minutes=30) as stopping:
            train(config, workdir, should_stop=stopping)

    Attributes:
      signal: the first signal that was received, or None.
    """

    def __init__(self, minutes: float = math.inf):
        """Starts the time limit.

        Args:
          minutes: the time limit, from now.
        """
        self.signal: signal.Signals | None = None
        self._end = time.monotonic() + 60 * minutes

    @property
    def budget_spent(self) -> bool:
        """Whether the time limit has been reached."""
        return time.monotonic() >= self._end

    @property
    def exit_status(self) -> int:
        """The exit status after a signal, as in shells: 130 or 143; 0 without a signal."""
        return 128 + self.signal if self.signal else 0

    def __call__(self) -> bool:
        """Whether a stop has been requested."""
        return self.signal is not None or self.budget_spent

    def __enter__(self) -> "Stopping":
        """Installs the signal handlers. Raises ValueError outside of the main thread."""
        self._handlers = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)
        # Not print, which is not reentrant: the signal may arrive during another print.
        os.write(2, b"stopping at a checkpoint; a second signal interrupts at once\n")
