"""Training and evaluation from the command line.

    python -m multipath_jax.main --config=configs/digits.py --workdir=runs/digits
    python -m multipath_jax.main --mode=eval --workdir=runs/digits

Exit status: 0 done; 1 the loss is not finite; 2 bad input; 130 interrupted from the keyboard.
"""

import contextlib
import re
import sys

from absl import app, flags, logging
from etils import epath
from ml_collections import config_flags

from multipath_jax.errors import UserError
from multipath_jax.training import checkpoints, processes
from multipath_jax.training import config as config_lib
from multipath_jax.training.devices import enable_compilation_cache
from multipath_jax.training.loop import Result, TrainingFailed, train
from multipath_jax.training.parts import Parts
from multipath_jax.training.trials import train_trials

CONFIG = config_flags.DEFINE_config_file("config", None, "A recipe: one of the files in configs/.")
WORKDIR = flags.DEFINE_string("workdir", None, "Where checkpoints and logs go.")
DISTRIBUTED = flags.DEFINE_string(
    "distributed", "off", "Several processes: auto (TPU VMs, Slurm, Kubernetes) or HOST:PORT."
)
PROCESS_ID = flags.DEFINE_integer("process_id", None, "With --distributed=HOST:PORT.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "With --distributed=HOST:PORT.")
MODE = flags.DEFINE_enum("mode", "train", ["train", "eval"], "Train, or evaluate a checkpoint.")
CHECKPOINT = flags.DEFINE_enum("checkpoint", "best", ["best", "latest"], "Which to evaluate.")
USAGE = "--config=configs/digits.py --workdir=runs/digits"


def main(argv: list[str]) -> int:
    """Trains or evaluates; gives the exit status."""
    try:
        if len(argv) > 1:
            raise UserError(f"what is {argv[1]!r}? arguments are flags, such as {USAGE}")
        if not WORKDIR.value:
            raise UserError(f"say where to write, and by which recipe: {USAGE}")
        processes.initialize(DISTRIBUTED.value, PROCESS_ID.value, NUM_PROCESSES.value)
        return _evaluate() if MODE.value == "eval" else _train()
    except UserError as error:
        return _fail(error, 2)
    except TrainingFailed as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130


def _train() -> int:
    if CONFIG.value is None:
        raise UserError(f"say by which recipe to train: {USAGE}")
    enable_compilation_cache(CONFIG.value.compilation_cache)
    if CONFIG.value.trials > 1:
        for result in train_trials(CONFIG.value, WORKDIR.value):
            _report(result)
    else:
        _report(train(CONFIG.value, WORKDIR.value))
    return 0


def _report(result: Result) -> None:
    """The last lines."""
    if not processes.is_first():
        return
    for path in result.paths:
        print(f"wrote {path}")
    if result.test:
        best = f" (best of the run: {result.best_error:.2f} %)"
        print(f"test error {result.test['error']:.2f} %{best}")


def _evaluate() -> int:
    """Evaluates a workdir's checkpoint by the config stored there, or by one that agrees."""
    workdir = epath.Path(WORKDIR.value).expanduser()
    found = checkpoints.open_existing(workdir)
    config = CONFIG.value
    if config is None:
        config = config_lib.read_config(workdir / checkpoints.CONFIG_FILE)
    else:
        checkpoints.check_workdir(workdir, config)
    enable_compilation_cache(config.compilation_cache)
    parts = Parts(config)
    step = found.best if CHECKPOINT.value == "best" else found.latest
    weights = found.restore_weights(parts.abstract_carry.state.variables, step)
    print(
        f"{CHECKPOINT.value} checkpoint of {workdir}, step {step}, {config.dataset.name} test split"
    )
    for name, value in parts.evaluate(weights).items():
        unit = " %" if "error" in name else ""
        print(f"{name.replace('_', ' ')} {value:.{2 if unit else 4}f}{unit}")
    return 0


def _parse(argv: list[str]) -> list[str]:
    """Parses the flags; whatever is wrong with them or the config file ends in one line."""
    try:
        for argument in argv[1:]:
            if match := re.match(r"--?config\.([^=]+)", argument):
                config_lib.check_key(match[1])
            if match := re.match(r"--?config=([^:]+)", argument):
                _check_file(match[1])
        rest = flags.FLAGS(argv)
    except Exception as error:  # a config file is a program: anything can happen
        sys.exit(_fail(_cause(error), 2))
    if flags.FLAGS["verbosity"].using_default_value:
        logging.set_verbosity(logging.ERROR)  # Orbax warns of what is meant
    return rest


def _check_file(path: str) -> None:
    try:
        with open(path):
            pass
    except OSError as error:
        raise UserError(f"the config {path} cannot be read ({error.strerror})") from error


def _cause(error: Exception) -> Exception:
    """What a user can do something about, behind the errors that the flags' parser made of it."""
    chain = [error]
    while following := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(following)
    root = chain[-1]
    if ours := [link for link in chain if isinstance(link, UserError)]:
        return ours[-1]
    if match := re.search(r'Key "([^"]+)" does not exist', str(root)):
        return _unknown_key(match[1])
    if isinstance(error, flags.Error) and "parsing config file" not in str(error):
        return error
    return UserError(f"the config file fails: {type(root).__name__}: {root}")


def _unknown_key(key: str) -> UserError:
    try:
        config_lib.check_key(key)
    except UserError as error:
        return error
    return UserError(f"the config key {key!r} is not where the config file looks for it")


def _fail(error: Exception, status: int) -> int:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    print(f"error: {lines[0]}", file=sys.stderr)
    return status


def run() -> None:
    """The entry point."""
    with contextlib.suppress(BrokenPipeError):
        app.run(main, flags_parser=_parse)


if __name__ == "__main__":
    run()
