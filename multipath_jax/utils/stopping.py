"""A wish to stop: Ctrl-C, a scheduler's SIGTERM, or a budget of time that is spent."""

import math
import os
import signal
import time

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopping:
    """While it is entered, the first SIGINT or SIGTERM is a wish, the second interrupts at once.

    It is called to ask whether to stop, as `train` does with its ``should_stop``:

        with Stopping(minutes=30) as stopping:
            train(config, workdir, should_stop=stopping)

    Attributes:
      signal: the first signal that came, or None.
    """

    def __init__(self, minutes: float = math.inf):
        """``minutes``: the budget of time, from now on."""
        self.signal: signal.Signals | None = None
        self._end = time.monotonic() + 60 * minutes

    @property
    def budget_spent(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() >= self._end

    @property
    def exit_status(self) -> int:
        """What a program ends with after the signal, as a shell has it: 130 or 143; else 0."""
        return 128 + self.signal if self.signal else 0

    def __call__(self) -> bool:
        """Whether to stop."""
        return self.signal is not None or self.budget_spent

    def __enter__(self) -> "Stopping":
        """Takes the signals. Raises ValueError outside of the main thread."""
        self._handlers = {number: signal.signal(number, self._heard) for number in SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _heard(self, number: int, _) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)
        # Not print: the signal may come in the middle of another one.
        os.write(2, b"stopping at a checkpoint; a second signal interrupts at once\n")
