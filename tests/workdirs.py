"""What a run left in its workdir, to compare with what another one left."""

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from multipath_jax import checkpoints as ckpt
from multipath_jax.checkpoints import working_copy
from multipath_jax.metrics_file import read_metrics

CLOCK = {"images_per_second", "seconds"}  # what differs from run to run


def lines(workdir):
    """metrics.jsonl without what depends on the clock."""
    return [
        {key: line[key] for key in line.keys() - CLOCK}
        for line in read_metrics(epath.Path(workdir))
    ]


def final(workdir, setup):
    """The carry of the last checkpoint of a run of such a `Setup`."""
    checkpoints = ckpt.open_existing(workdir)
    return checkpoints.restore(setup.abstract_carry, checkpoints.latest)


def saved(workdir):
    """The step of the last checkpoint and its numbers by key, read without the package."""
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
    """Bit for bit: weights, statistics, momentum, metrics since the last log, and the logs."""
    (step, found), (expected_step, expected) = saved(workdir), saved(other)
    assert step == expected_step
    assert found.keys() == expected.keys()
    for key in expected:
        np.testing.assert_array_equal(found[key], expected[key], err_msg=key)
    assert lines(workdir) == lines(other)
