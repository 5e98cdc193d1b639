"""The guard that a script needs before it starts processes, each of which imports the script."""

import multiprocessing

from multipath_jax.errors import UserError

GUARD = 'if __name__ == "__main__":'


def check_guard() -> None:
    """Raises UserError in a process that is still importing the script that has started it.

    Python sets ``_inheriting`` during that time, in which no process can be started.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise UserError(
            f"a process that this script has started runs the whole script again; put what it does "
            f"under {GUARD}, or use dataset.workers=0"
        )
