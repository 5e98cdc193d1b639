"""Multi-process training of one network, on one host or several, with `jax.distributed`."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import numpy as np
from jax._src import cloud_tpu_init  # whether this is a TPU VM, as JAX itself asks
from jax.experimental import multihost_utils

from multipath_jax.errors import UserError

OFF, AUTO = "off", "auto"
TOGETHER, MARGIN = 300, 60  # timeout in seconds for all processes to connect; JAX's is longer
# The port of process 0 on TPU VMs. Google's firewall rule opens 8476, JAX's default until 0.8.0;
# since then the default is 8482, and the other processes time out (jax issue 35905).
TPU_PORT = "8476"


def initialize(distributed: str, process_id: int | None, num_processes: int | None) -> None:
    """Connects to the other processes; must be called before JAX initializes its devices.

    If they do not connect within `TOGETHER` seconds, this process prints an error and exits.

    Args:
      distributed: ``off``; ``auto``, if JAX can detect the cluster (TPU VMs, Slurm, Kubernetes); or
        the address ``HOST:PORT`` of process 0.
      process_id: the number of this process; required with an address.
      num_processes: the number of processes; required with an address.

    Raises:
      UserError: the flags are inconsistent, or the other processes cannot be reached.
    """
    numbered = process_id is not None or num_processes is not None
    if distributed in (OFF, AUTO):
        if numbered:
            raise UserError("--process_id and --num_processes go with --distributed=HOST:PORT")
        arguments = {}
    elif process_id is None or num_processes is None or ":" not in distributed:
        raise UserError(
            f"--distributed={distributed} is not off, auto, or HOST:PORT with --process_id and "
            "--num_processes"
        )
    elif not 0 <= process_id < num_processes:
        raise UserError(f"--process_id={process_id} is not from 0 to {num_processes - 1}")
    else:
        arguments = {
            "coordinator_address": distributed,
            "process_id": process_id,
            "num_processes": num_processes,
            # Under srun or mpirun, JAX would otherwise choose devices by itself.
            "cluster_detection_method": "deactivate",
        }
    if distributed == OFF:
        return
    if distributed == AUTO and cloud_tpu_init.running_in_cloud_tpu_vm:
        os.environ.setdefault("JAX_COORDINATOR_PORT", TPU_PORT)
    watch = threading.Timer(TOGETHER, _give_up, [distributed, num_processes])
    watch.daemon = True
    watch.start()
    try:
        jax.distributed.initialize(**arguments, initialization_timeout=TOGETHER + MARGIN)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--distributed={distributed} fails: {reason}") from error
    finally:
        watch.cancel()


def _give_up(distributed: str, num_processes: int | None) -> None:
    """Ends this process with an error; JAX itself would abort with a C++ stack trace."""
    if distributed == AUTO:
        wanted, port = "the same command runs on every host", "JAX_COORDINATOR_PORT"
        port += f"={os.environ[port]}" if port in os.environ else ""
    else:
        wanted = f"all {num_processes} run, each with a --process_id of its own"
        port = f"port {distributed.rpartition(':')[2]}"
    print(
        f"error: --distributed={distributed}: the processes did not connect within {TOGETHER} s; "
        f"check that {wanted}, and that no firewall blocks {port} of process 0",
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)


def is_first() -> bool:
    """Whether this is process 0, which prints and writes logs."""
    return jax.process_index() == 0


def first_decides(value: int) -> int:
    """Broadcasts an integer from process 0 to all processes."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def any_process(value: bool) -> bool:
    """Whether it is true on any process; all of them ask at the same step.

    JAX's `multihost_utils.reached_preemption_sync_point` does not serve to stop a run: it hears
    SIGTERM alone, where a run stops for Ctrl-C and at the end of its minutes too, and it names a
    step to stop at that may lie in the middle of a call of many steps, where it has to be asked
    after every single one.
    """
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.process_allgather(np.bool_(value)).any())


def wait_for_all(name: str) -> None:
    """A barrier: returns when every process has called it with this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


@contextmanager
def first_alone(name: str) -> Iterator[None]:
    """Context whose body runs on process 0 first, then on the others, such as to prepare data."""
    if not is_first():
        wait_for_all(name)
    yield
    if is_first():
        wait_for_all(name)
