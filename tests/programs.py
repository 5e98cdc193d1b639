"""Programs that tests start, signal and read, as forks of a process that has imported the package.

To import JAX and what the programs need beside it takes seconds of a processor, a fork takes none.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import sys
import threading

import jax

CACHE = os.path.expanduser("~/.cache/multipath_jax/xla")  # of compiled programs, for all tests

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["multipath_jax.main", "multipath_jax.curves", "sklearn.datasets"])


class Program:
    """A script that runs.

    Attributes:
      stdout: what it prints, errors too, line by line.
    """

    def __init__(self, script, *arguments, **environment):
        """Starts it.

        Args:
          script: the file.
          arguments: of its command line.
          environment: variables beside those of this process, whose cache of programs it shares.
        """
        read, write = multiprocessing.Pipe(duplex=False)
        cache = {"JAX_COMPILATION_CACHE_DIR": CACHE}
        arguments, environment = [*map(str, arguments)], {**cache, **os.environ, **environment}
        self._process = _CONTEXT.Process(
            target=_run, args=(write, str(script), arguments, environment)
        )
        self._process.start()
        write.close()
        self.pid = self._process.pid
        self.stdout = os.fdopen(os.dup(read.fileno()), errors="replace")
        read.close()

    def poll(self):
        """The exit status; None if it still runs."""
        return self._process.exitcode

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def end(self, timeout=240):
        """Waits until nothing prints any more; the exit status and the rest of what was printed."""
        killing = threading.Timer(timeout, self.kill)
        killing.start()
        printed = "" if self.stdout.closed else self.stdout.read()
        self.stdout.close()
        self._process.join()
        killing.cancel()
        return self.poll(), printed


def _run(write, script, arguments, environment):
    """In the fork: as if Python had been started with the script."""
    for stream in (1, 2):
        os.dup2(write.fileno(), stream)
    write.close()
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", 1, closefd=False) for stream in (1, 2))
    os.environ.clear()
    os.environ.update(environment)
    cache = environment["JAX_COMPILATION_CACHE_DIR"]  # what JAX reads when it is imported
    jax.config.update("jax_compilation_cache_dir", cache)
    sys.argv = [script, *arguments]
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # which forks of multiprocessing leave out
