"""Runs of the small network as processes of their own, which can be killed."""

import os
import pathlib
import subprocess
import sys
import time

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


class Program:
    """`multipath_jax.main`, which knows `tiny.Tiny` by name."""

    def __init__(
        self, data_dir, workdir, environment=None, flags=(), seconds_a_step=None, **changes
    ):
        config = RECIPE | {"dataset.data_dir": data_dir} | changes
        command = [sys.executable, str(ROOT / "tests" / "training" / "tiny.py")]
        command += [f"--workdir={workdir}", f"--config={ROOT / 'configs' / 'digits.py'}"]
        command += [f"--config.{key}={value}" for key, value in config.items()]
        command += flags
        environment = {"PYTHONUNBUFFERED": "1"} | (environment or {})
        if seconds_a_step:
            environment["SECONDS_A_STEP"] = str(seconds_a_step)
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | environment,
        )

    def wait_for(self, text):
        """Reads its output up to a line with the text; gives what was read."""
        read = []
        for line in self.process.stdout:
            read.append(line)
            if text in line:
                return "".join(read)
        raise AssertionError(f"ended without {text!r}:\n{''.join(read)}")

    def send(self, number, after=0.0):
        """Sends a signal; gives the exit status and the rest of the output."""
        time.sleep(after)
        self.process.send_signal(number)
        return self.end()

    def end(self):
        """Waits for its end; the exit status and the rest of the output."""
        output, _ = self.process.communicate(timeout=240)
        return self.process.returncode, output
