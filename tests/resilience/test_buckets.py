"""Killing and resuming a run in a bucket."""

import os
import random
import signal

import pytest
from buckets import Buckets
from runs import train
from workdirs import assert_same_end

from multipath_jax import metrics_file
from multipath_jax.checkpoints.working_copy import stored_steps
from multipath_jax.parallel.compilation import CACHE_FOLDER
from multipath_jax.utils import claims, storage

# Seconds: `claims.RENEWAL`, `STALE` and `SETTLING`.
QUICK = {"CLAIM": "0.2 2 0.1"}
CHANGES = {
    "train_for": "12 steps",
    "log_every": "1 step",
    "checkpoint_every": "2 steps",
    "schedule.boundaries": "",
}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "kills"), [("gs", [5]), ("s3", [5, 7, 10])])
def test_kills_change_nothing(program, bucket, data_dir, tmp_path, kind, kills):
    workdir = bucket.replace("gs://", f"{kind}://") + "/runs/killed"
    moments = random.Random(0)
    for step in kills:
        run = program(workdir, environment=QUICK, seconds_a_step=0.05, **CHANGES)
        run.wait_for(f"step {step}/12")
        status, output = run.send(signal.SIGKILL, after=moments.uniform(0.0, 0.2))
        assert status == -signal.SIGKILL, output
    assert storage.exists(f"{workdir}/.claim")  # of the killed process
    status, output = program(workdir, environment=QUICK, **CHANGES).end()
    assert status == 0, output
    assert "resuming at step" in output
    train(data_dir, tmp_path / "whole", **CHANGES)  # in a local folder
    Buckets(use_listings_cache=False).get(f"{workdir}/", f"{tmp_path}/killed/", recursive=True)
    found = tmp_path / "killed"
    assert_same_end(found, tmp_path / "whole")
    names = {*os.listdir(tmp_path / "whole")} - {claims.LOCK_FILE}
    # The workdir in the bucket has the compilation cache, if compilation took long enough.
    assert {*os.listdir(found)} - {metrics_file.DROPPED_FILE, CACHE_FOLDER} == names
    text = (found / "train.log").read_text()
    assert text.count("  process ") == len(kills) + 1  # one per process
    assert "step 12/12" in text
    assert len(stored_steps(f"{workdir}/checkpoints")) in (2, 3)  # the two latest and the best
    assert len(storage.names(f"{workdir}/checkpoints")) in (2, 3)  # and none that are incomplete
