"""Runs of the small network in subprocesses, which can be killed."""

import pathlib
import sys
import time

from programs import Program

sys.path.append(str(pathlib.Path(__file__).parents[1] / "training"))
import tiny

from multipath_jax import recipes

ROOT = pathlib.Path(__file__).parents[2]

RECIPE = {
    "model.name": "Tiny",
    "dataset.shift": 1,
    "schedule.boundaries": "",
    "schedule.learning_rate": 0.3,
    "log_every": "5 steps",
    "eval_every": "2 epochs",
    "checkpoint_every": "1 step",
    "tensorboard": "off",
}


def train(data_dir, workdir, **changes):
    """Trains the same run in this process."""
    config = recipes.digits()
    own = {"model.name": "own:Tiny", "dataset.data_dir": str(data_dir)}
    config.update_from_flattened_dict(RECIPE | own | changes)
    tiny.train(config, workdir)


class Run(Program):
    """`multipath_jax.main` with `tiny.Tiny` registered by name, in a subprocess."""

    def __init__(
        self, data_dir, workdir, environment=None, flags=(), seconds_a_step=None, **changes
    ):
        config = RECIPE | {"dataset.data_dir": data_dir} | changes
        arguments = [f"--workdir={workdir}", f"--config={ROOT / 'configs' / 'digits.py'}"]
        arguments += [f"--config.{key}={value}" for key, value in config.items()]
        environment = environment or {}
        if seconds_a_step:
            environment = environment | {"SECONDS_A_STEP": str(seconds_a_step)}
        super().__init__(ROOT / "tests" / "training" / "tiny.py", *arguments, *flags, **environment)

    def wait_for(self, text):
        """Reads output up to a line that contains ``text``; returns what was read."""
        read = []
        for line in self.stdout:
            read.append(line)
            if text in line:
                return "".join(read)
        raise AssertionError(f"ended without {text!r}:\n{''.join(read)}")

    def send(self, number, after=0.0):
        """Sends a signal after some seconds; returns the exit status and the rest of the output."""
        time.sleep(after)
        self.send_signal(number)
        return self.end()
