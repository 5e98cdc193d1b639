"""Checkpoints, and the other files of a workdir."""

from multipath_jax.checkpoints.errors import Damaged, Unreadable, WritingFailed
from multipath_jax.checkpoints.existing import open_existing, read_existing, steps_in
from multipath_jax.checkpoints.store import DAMAGED, FOLDER, RECORD, RECORD_FILE, Checkpoints
from multipath_jax.checkpoints.transfer import check_source, initialize_from, is_workdir
from multipath_jax.checkpoints.workdir import (
    CONFIG_FILE,
    DATASET_FILE,
    EARLIER,
    check_data,
    check_workdir,
    claimed,
    move_aside,
    with_stored_start,
    write_config,
    write_description,
)

__all__ = [
    "CONFIG_FILE",
    "DAMAGED",
    "DATASET_FILE",
    "EARLIER",
    "FOLDER",
    "RECORD",
    "RECORD_FILE",
    "Checkpoints",
    "Damaged",
    "Unreadable",
    "WritingFailed",
    "check_data",
    "check_source",
    "check_workdir",
    "claimed",
    "initialize_from",
    "is_workdir",
    "move_aside",
    "open_existing",
    "read_existing",
    "steps_in",
    "with_stored_start",
    "write_config",
    "write_description",
]
