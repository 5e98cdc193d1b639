"""Training and evaluation from the command line.

    python -m multipath_jax.main --config=digits --workdir=runs/digits
    python -m multipath_jax.main --mode=eval --workdir=runs/digits

Evaluation runs on any number of devices. The data have to have the classes that the run was trained
on; if the images are other ones, it says so.

A config is a recipe by its name, such as cifar:ResNet20-3-CC, or a file of one's own; a workdir is
a folder, or the address of one in a bucket (gs:// or s3://).

Exit status: 0 done; 1 the loss is not finite, or something cannot be written; 2 bad input. After
SIGINT (Ctrl-C) and SIGTERM the run saves a checkpoint within a second or so and ends with 130 or
143; the same command goes on. A second Ctrl-C ends it at once.
"""

import dataclasses
import signal
import sys
from typing import NoReturn

from absl import flags

from multipath_jax import checkpoints
from multipath_jax.config import flags as config_flags
from multipath_jax.config import keys as config_lib
from multipath_jax.data.datasets import TEST
from multipath_jax.errors import UserError
from multipath_jax.parallel import processes
from multipath_jax.parallel.compilation import enable_compilation_cache
from multipath_jax.runs import load_run
from multipath_jax.trainer import train
from multipath_jax.training.hooks import SPLITS
from multipath_jax.training.run import Result
from multipath_jax.trials import train_trials
from multipath_jax.utils import filesystem
from multipath_jax.utils.stopping import Stopping

WORKDIR = flags.DEFINE_string("workdir", None, "Where checkpoints and logs go.")
DISTRIBUTED = flags.DEFINE_string(
    "distributed", "off", "Several processes: auto (TPU VMs, Slurm, Kubernetes) or HOST:PORT."
)
PROCESS_ID = flags.DEFINE_integer("process_id", None, "With --distributed=HOST:PORT.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "With --distributed=HOST:PORT.")
MODE = flags.DEFINE_enum("mode", "train", ["train", "eval"], "Train, or evaluate a checkpoint.")
CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "Which to evaluate: best, latest or a step.")
RESTART = flags.DEFINE_bool(
    "restart",
    False,
    "Begin afresh; the run that the workdir has is moved into a folder `earlier` of it. Give it "
    "once: the same command without it goes on.",
)
USAGE = "--config=digits --workdir=runs/digits"


def main(argv: list[str]) -> int:
    """Trains or evaluates; gives the exit status."""
    try:
        if len(argv) > 1:
            raise UserError(f"what is {argv[1]!r}? arguments are flags, such as {USAGE}")
        if not WORKDIR.value:
            raise UserError(f"say where to write, and by which recipe: {USAGE}")
        processes.initialize(DISTRIBUTED.value, PROCESS_ID.value, NUM_PROCESSES.value)
        return _evaluate() if MODE.value == "eval" else _train()
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130


def _train() -> int:
    if config_flags.CONFIG.value is None:
        raise UserError(f"say by which recipe to train: {USAGE}")
    config, workdir = config_flags.CONFIG.value, WORKDIR.value
    enable_compilation_cache(config.compilation_cache, workdir)
    with Stopping() as stopping:
        if config.trials > 1:
            results = train_trials(config, workdir, stopping, RESTART.value)
        else:
            results = [train(config, workdir, stopping, RESTART.value)]
    for result in results:
        _report(result)
    if results[-1].finished:
        return 0
    # The signal may have come to another process of this run.
    return stopping.exit_status or 128 + signal.SIGTERM


def _report(result: Result) -> None:
    """The last lines."""
    if not processes.is_first():
        return
    for path in result.paths:
        print(f"wrote {path}")
    if result.test:
        best = f" (best of the run: {result.best_error:.2f} %)"
        print(f"{SPLITS[result.evaluated]} error {result.test['error']:.2f} %{best}")


def _evaluate() -> int:
    """Evaluates a workdir's checkpoint by the config stored there, or by one that agrees."""
    workdir, config = filesystem.path("--workdir", WORKDIR.value), config_flags.CONFIG.value
    if config is not None:
        config_lib.validate(config)
        checkpoints.check_workdir(workdir, config)
    run = load_run(workdir, CHECKPOINT.value)
    run = run if config is None else dataclasses.replace(run, config=config)
    enable_compilation_cache(run.config.compilation_cache)
    held_out = f", {run.config.dataset.holdout} training images held out"
    what = run.dataset.name + (" test split" if run.dataset.evaluated == TEST else held_out)
    lines = [f"{CHECKPOINT.value} checkpoint of {workdir}, step {run.step}, {what}"]
    lines += [f"not the data of training: {other}" for other in run.other_images]
    for name, value in run.evaluate().items():
        unit = " %" if "error" in name else ""
        lines.append(f"{name.replace('_', ' ')} {value:.{2 if unit else 4}f}{unit}")
    if processes.is_first():
        print("\n".join(lines))
    return 0


def run() -> NoReturn:
    """The entry point."""
    config_flags.run(main)


if __name__ == "__main__":
    run()
