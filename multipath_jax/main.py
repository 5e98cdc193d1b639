"""Training and evaluation from the command line.

    python -m multipath_jax.main --config=digits --workdir=runs/digits
    python -m multipath_jax.main --mode=eval --workdir=runs/digits

Evaluation runs on any number of devices. The data must have the classes of training; if the images
differ from those of training, a line says so.

A config is the name of a recipe, such as cifar:ResNet20-3-CC, or a user's file; a workdir is a
folder, or an address in a bucket (gs:// or s3://).

Exit status: 0 success; 1 the loss is not finite, or a file cannot be written; 2 invalid input.
After SIGINT (Ctrl-C) or SIGTERM the run saves a checkpoint within about a second and exits with 130
or 143; rerun the command to resume. A second Ctrl-C ends it immediately.
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
from multipath_jax.metrics_file import SPLITS
from multipath_jax.parallel import processes
from multipath_jax.parallel.compilation import enable_compilation_cache, enable_shared_cache
from multipath_jax.runs import load_run
from multipath_jax.trainer import train
from multipath_jax.training.run import Result
from multipath_jax.trials import train_trials
from multipath_jax.utils import filesystem
from multipath_jax.utils.stopping import Stopping

WORKDIR = flags.DEFINE_string("workdir", None, "Folder for checkpoints and logs.")
DISTRIBUTED = flags.DEFINE_string(
    "distributed",
    "off",
    "Multi-process runs: auto (TPU VMs, Slurm, Kubernetes), or HOST:PORT of process 0.",
)
PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "Number of this process, with --distributed=HOST:PORT."
)
NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "Number of processes, with --distributed=HOST:PORT."
)
MODE = flags.DEFINE_enum("mode", "train", ["train", "eval"], "Train, or evaluate a checkpoint.")
CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "With --mode=eval: best, latest or a step.")
TEST_SPLIT = flags.DEFINE_bool(
    "test_split",
    False,
    "With --mode=eval: evaluate on the test split, also if the run held out training images.",
)
RESTART = flags.DEFINE_bool(
    "restart",
    False,
    "Start from scratch; files of an earlier run are moved to the folder `earlier` in the workdir. "
    "To resume, rerun the command without this flag.",
)
USAGE = "--config=digits --workdir=runs/digits"


def main(argv: list[str]) -> int:
    """Trains or evaluates and returns the exit status."""
    try:
        if len(argv) > 1:
            raise UserError(f"unexpected argument {argv[1]!r}; use flags, such as {USAGE}")
        if not WORKDIR.value:
            raise UserError(f"--workdir is missing; use flags such as {USAGE}")
        _check_mode()
        processes.initialize(DISTRIBUTED.value, PROCESS_ID.value, NUM_PROCESSES.value)
        return _evaluate() if MODE.value == "eval" else _train()
    except KeyboardInterrupt:
        print("interrupted; rerun the command to resume", file=sys.stderr)
        return 130


def _check_mode() -> None:
    """Raises UserError for flags that have no effect in the mode."""
    if MODE.value == "eval" and RESTART.value:
        raise UserError("--restart has no effect with --mode=eval; remove it")
    for flag in (CHECKPOINT, TEST_SPLIT):
        if MODE.value == "train" and flag.present:
            raise UserError(f"--{flag.name} has no effect in training; use it with --mode=eval")


def _train() -> int:
    if config_flags.CONFIG.value is None:
        raise UserError(f"--config is missing; use flags such as {USAGE}")
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
    # Another process of this run may have received the signal.
    return stopping.exit_status or 128 + signal.SIGTERM


def _report(result: Result) -> None:
    """Prints the result of a run."""
    if not processes.is_first():
        return
    for path in result.paths:
        print(f"wrote {path}")
    if result.test:
        best = result.best_error
        best = "" if best is None else f" (best of the run: {best:.2f} %)"
        print(f"{SPLITS[result.evaluated]} error {result.test['error']:.2f} %{best}")


def _evaluate() -> int:
    """Evaluates a checkpoint with the stored config, or with a given one that is compatible."""
    workdir, config = filesystem.path("--workdir", WORKDIR.value), config_flags.CONFIG.value
    if config is not None:
        config_lib.validate(config)
        checkpoints.check_workdir(workdir, config)
    run = load_run(workdir, CHECKPOINT.value)
    run = run if config is None else dataclasses.replace(run, config=config)
    images_differ = run.config.dataset.holdout > 0 and TEST_SPLIT.value  # from those held out
    run = run.on_test_split() if TEST_SPLIT.value else run
    if config is None:
        enable_shared_cache(run.config.compilation_cache)
    else:
        enable_compilation_cache(config.compilation_cache)
    held_out = f", {run.config.dataset.holdout} training images held out"
    what = run.dataset.name + (" test split" if run.dataset.evaluated == TEST else held_out)
    lines = [f"{CHECKPOINT.value} checkpoint of {workdir}, step {run.step}, {what}"]
    others = [] if images_differ else run.other_images
    lines += [f"the data differ from those of training: {other}" for other in others]
    for name, value in run.evaluate().items():
        unit = " %" if "error" in name else ""
        part, slash, measure = name.rpartition("/")
        measure = measure.replace("_", " ")
        lines.append(f"{part}{slash and ': '}{measure} {value:.{2 if unit else 4}f}{unit}")
    if processes.is_first():
        print("\n".join(lines))
    return 0


def run() -> NoReturn:
    """The entry point."""
    config_flags.run(main)


if __name__ == "__main__":
    run()
