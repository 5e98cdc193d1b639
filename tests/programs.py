"""Programs that tests start, signal and read, as forks of a process that has imported the package.

Importing JAX and the other dependencies takes seconds of CPU time; a fork takes almost none.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import sys
import threading

import jax

CACHE = os.path.expanduser("~/.cache/multipath_jax/xla")  # compilation cache of all tests

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["multipath_jax.main", "multipath_jax.curves", "sklearn.datasets"])


class Program:
    """A running script.

    Attributes:
      stdout: a text stream of its standard output and standard error.
    """

    def __init__(self, script, *arguments, **environment):
        """Starts the script.

        Args:
          script: path of the script.
          arguments: command-line arguments.
          environment: environment variables in addition to those of this process and to the
            compilation cache of the tests.
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
        """The exit status; None while the script is running."""
        return self._process.exitcode

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def end(self, timeout=240):
        """Waits until the output ends; kills the script after ``timeout`` seconds.

        Returns:
          The exit status and the unread output.
        """
        killing = threading.Timer(timeout, self.kill)
        killing.start()
        printed = "" if self.stdout.closed else self.stdout.read()
        self.stdout.close()
        self._process.join()
        killing.cancel()
        return self.poll(), printed


def _run(write, script, arguments, environment):
    """Runs the script in the fork, as ``python SCRIPT`` would."""
    for stream in (1, 2):
        os.dup2(write.fileno(), stream)
    write.close()
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", 1, closefd=False) for stream in (1, 2))
    os.environ.clear()
    os.environ.update(environment)
    cache = environment["JAX_COMPILATION_CACHE_DIR"]  # JAX reads the variable only on import
    jax.config.update("jax_compilation_cache_dir", cache)
    sys.argv = [script, *arguments]
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # forks of multiprocessing skip these
