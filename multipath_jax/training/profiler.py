"""``config.profile``: a trace of chosen steps, for TensorBoard and for Perfetto."""

import contextlib
from collections.abc import Callable

import jax
from etils import epath

from multipath_jax.utils import storage

FOLDER = "profile"


class Profiler:
    """Records what host and devices do between two steps into ``workdir/profile``.

    TensorBoard (with its profile plugin) opens that folder; https://ui.perfetto.dev opens the
    ``perfetto_trace.json.gz`` in it. A context: what is being recorded at its end is written too.
    """

    def __init__(
        self, workdir: epath.Path, window: tuple[int, int] | None, say: Callable[[str], None]
    ):
        """``window``: the first step that is not yet taken when the trace begins, and the last."""
        self._folder, self._window, self._say = workdir / FOLDER, window, say
        self._recording = contextlib.ExitStack()

    def at(self, step: int) -> None:
        """Begins or ends the trace, where that is due after ``step`` steps."""
        if self._window and step == self._window[0]:
            self._recording.enter_context(self._recorded())
        elif self._window and step == self._window[1]:
            self._recording.close()

    @contextlib.contextmanager
    def _recorded(self):
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

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *_: object) -> None:
        self._recording.close()
