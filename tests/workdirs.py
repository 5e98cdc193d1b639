"""Reads and compares the results of runs in their workdirs."""

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from multipath_jax import checkpoints as ckpt
from multipath_jax.checkpoints import working_copy
from multipath_jax.metrics_file import read_metrics

CLOCK = {"images_per_second", "seconds"}  # metrics that differ from run to run


def lines(workdir):
    """The lines of metrics.jsonl without the metrics that depend on the clock."""
    return [
        {key: line[key] for key in line.keys() - CLOCK}
        for line in read_metrics(epath.Path(workdir))
    ]


def final(workdir, setup):
    """The carry in the last checkpoint of a run with the given `Setup`."""
    checkpoints = ckpt.open_existing(workdir)
    return checkpoints.restore(setup.abstract_carry, checkpoints.latest)


def saved(workdir):
    """The step of the last checkpoint and its arrays by key, read directly with Orbax."""
    folder = working_copy.Folder(workdir).absolute() / ckpt.FOLDER
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


def assert_same_end(workdir, other):
    """Asserts that two runs have bitwise equal last checkpoints, and equal logs.

    A checkpoint has weights, statistics, momentum, and the metrics since the last log.
    """
    (step, found), (expected_step, expected) = saved(workdir), saved(other)
    assert step == expected_step
    assert found.keys() == expected.keys()
    for key in expected:
        np.testing.assert_array_equal(found[key], expected[key], err_msg=key)
    assert lines(workdir) == lines(other)
