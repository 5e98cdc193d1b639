"""Training in a bucket, and resuming, restarting, evaluating and exporting such a run."""

import json
import os
import pathlib

import buckets
import numpy as np
import pytest
import tiny
from PIL import Image
from workdirs import assert_same_end

from multipath_jax import checkpoints as ckpt
from multipath_jax import export, predict
from multipath_jax.checkpoints.working_copy import stored_steps
from multipath_jax.figures import __main__ as figures
from multipath_jax.runs import load_run
from multipath_jax.utils import filesystem, storage

CHANGES = {"train_for": "6 steps", "schedule.boundaries": "", "checkpoint_every": "2 steps"}


@pytest.fixture(scope="module")
def local_run(data_dir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("local") / "run"
    tiny.train(tiny.tiny_config(data_dir, **CHANGES), workdir)
    return workdir


@pytest.fixture
def run(bucket, local_run):
    """The address of a run in a bucket."""
    buckets.upload(local_run, f"{bucket}/run")
    return f"{bucket}/run"


def local_copy(address, folder):
    buckets.Buckets(use_listings_cache=False).get(f"{address}/", f"{folder}/", recursive=True)
    return folder


def test_it_goes_on_restarts_and_is_evaluated(bucket, local_run, data_dir, tmp_path, capsys):
    config, workdir = tiny.tiny_config(data_dir, **CHANGES), f"{bucket}/run"
    looked = iter([False, True])
    assert tiny.train(config, workdir, should_stop=lambda: next(looked)).step < 6
    tiny.train(config, workdir)
    assert f"of {workdir}" in capsys.readouterr().out.partition("resuming at step")[2]
    before = local_copy(workdir, tmp_path / "before")
    assert_same_end(before, local_run)

    tiny.train(config, workdir, restart=True)
    assert f"the previous files are now in {workdir}/earlier" in capsys.readouterr().out
    after = local_copy(workdir, tmp_path / "after")
    assert_same_end(after, before)
    assert_same_end(after / "earlier", before)
    assert {*os.listdir(after)} == {*os.listdir(before), "earlier"}
    assert {*os.listdir(after / "earlier")} == {*os.listdir(before)}
    here, there = (load_run(at, model=tiny.Tiny()) for at in (local_run, workdir))
    assert here.evaluate() == there.evaluate()


@pytest.mark.slow
def test_what_comes_after_reads_from_there(bucket, digits_run, tmp_path, capsys):
    buckets.upload(digits_run, run := f"{bucket}/run")
    out = tmp_path / "exported.jax"
    assert export.main([f"--workdir={run}", f"--out={out}"]) == 0
    assert out.stat().st_size > 0
    picture = tmp_path / "seven.png"
    Image.fromarray(np.full((8, 8), 128, np.uint8)).save(picture)
    answers = []
    for workdir in (run, digits_run):
        assert predict.main([f"--workdir={workdir}", "--json", str(picture)]) == 0
        answers.append(capsys.readouterr().out.splitlines()[-1])
    assert answers[0] == answers[1]
    figures.main([f"--workdir={run}", "--limit=40", "--only=routes", "--html"])
    assert f"wrote {run}/figures/routes.png" in capsys.readouterr().out
    assert storage.read(f"{run}/figures/routes.png").startswith(b"\x89PNG")
    assert b"data:image/png" in storage.read(f"{run}/figures/report.html")


def test_a_damaged_checkpoint_is_put_aside_in_the_bucket(run, data_dir, capsys):
    config = tiny.tiny_config(data_dir, **CHANGES | {"train_for": "6 steps"})
    newest = stored_steps(f"{run}/checkpoints")[-1]
    folder = f"{run}/checkpoints/{newest}"
    record = json.loads(storage.read(f"{folder}/record/record.json"))
    storage.write(f"{folder}/record/record.json", json.dumps(record | {"crc32": 0}).encode())
    tiny.train(config, run)
    said = capsys.readouterr().out
    assert f"the checkpoint of step {newest} is damaged" in said
    assert storage.names(f"{run}/damaged") == [str(newest)]
    assert stored_steps(f"{run}/checkpoints")[-1] == newest  # saved again


def test_what_is_not_whole_is_no_checkpoint_and_goes(run, tmp_path):
    steps = stored_steps(f"{run}/checkpoints")
    storage.write(f"{run}/checkpoints/5/weights/manifest.ocdbt", b"half of it")
    assert stored_steps(f"{run}/checkpoints") == steps
    with ckpt.claimed(filesystem.path("workdir", run)):
        found = ckpt.Checkpoints(run)
        assert found.steps == steps
        folder = pathlib.Path(found._folder)
        (step := folder / str(steps[0])).rename(tmp_path / "gone")
        found._copy.publish()
        found.close()
    np.testing.assert_array_equal(storage.names(f"{run}/checkpoints"), [*map(str, steps[1:])])
    assert not step.exists()
