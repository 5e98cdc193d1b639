"""Runs of the small network as processes of their own, which can be killed."""

import json
import os
import pathlib
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "training"))  # tiny

RECIPE = {
    "dataset.shift": 1,
    "schedule.drops": "",
    "schedule.rate": 0.3,
    "log_every": "5 steps",
    "eval_every": "2 epochs",
    "checkpoint_every": "1 step",
    "tensorboard": "off",
}


class Program:
    """`multipath_jax.main` with `tiny.Tiny` as its network."""

    def __init__(self, data_dir, workdir, environment=None, flags=(), **changes):
        config = RECIPE | {"dataset.data_dir": data_dir} | changes
        command = [sys.executable, str(ROOT / "tests" / "training" / "tiny.py")]
        command += [f"--workdir={workdir}", f"--config={ROOT / 'configs' / 'digits.py'}"]
        command += [f"--config.{key}={value}" for key, value in config.items()]
        command += flags
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"} | (environment or {}),
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


def weights(workdir):
    """Every number of the last checkpoint, by its key, read without the package."""
    folder = pathlib.Path(workdir).absolute() / "checkpoints"
    last = max(int(path.name) for path in folder.iterdir() if path.name.isdigit())
    found = {}
    reader = ocp.PyTreeCheckpointer()
    for item in ("weights", "training"):
        path = folder / str(last) / item
        shapes = reader.metadata(path).item_metadata.tree
        arrays = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
        tree = reader.restore(path, restore_args=arrays)
        for key, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
            found[f"{item}{key}"] = np.asarray(leaf)
    return last, found


def lines(workdir):
    clock = {"images_per_second", "seconds"}
    text = (pathlib.Path(workdir) / "metrics.jsonl").read_text()
    return [
        {key: value for key, value in json.loads(line).items() if key not in clock}
        for line in text.splitlines()
    ]


def assert_same_end(workdir, other):
    (step, found), (expected_step, expected) = weights(workdir), weights(other)
    assert step == expected_step
    assert found.keys() == expected.keys()
    for key in expected:
        np.testing.assert_array_equal(found[key], expected[key], err_msg=key)
    assert lines(workdir) == lines(other)
