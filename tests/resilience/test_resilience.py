"""Resuming after kill -9 at random moments, signals and a full disk; errors are reported."""

import os
import random
import shutil
import signal
import subprocess

import pytest
from runs import train
from workdirs import assert_same_end, saved

SPACING = 20  # steps between two kills; every 5th step is logged


def campaign(program, tmp_path, kills, seed):
    """Trains a run without interruption, and another that is killed and resumed ``kills`` times.

    Every kill is a random moment after a random logged step.

    Returns:
      How many of the kills happened while a checkpoint was being written, which starts after every
      step.
    """
    changes = {"train_for": f"{SPACING * (kills + 1)} steps"}
    status, output = program(tmp_path / "whole", **changes).end()
    assert status == 0, output
    moments = random.Random(seed)
    in_mid_write = 0
    for number in range(kills):
        run = program(tmp_path / "killed", **changes)
        run.wait_for(f"step {number * SPACING + 5 * moments.randint(1, 3)}/")
        status, output = run.send(signal.SIGKILL, after=moments.uniform(0.0, 0.05))
        assert status == -signal.SIGKILL, output
        left = (tmp_path / "killed" / "checkpoints").iterdir()
        in_mid_write += any("tmp" in path.name for path in left)
    status, output = program(tmp_path / "killed", **changes).end()
    assert status == 0, output
    assert "resuming at step" in output
    print(f"{kills} kills, {in_mid_write} of them while a checkpoint was being written")
    return in_mid_write


@pytest.mark.slow
def test_two_kills_change_nothing(program, tmp_path):
    campaign(program, tmp_path, kills=2, seed=0)
    assert_same_end(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.slow
def test_twenty_kills_change_nothing(program, tmp_path):
    in_mid_write = campaign(program, tmp_path, kills=20, seed=1)
    assert_same_end(tmp_path / "killed", tmp_path / "whole")
    assert in_mid_write > 0


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_saves_first_and_the_run_goes_on(program, data_dir, tmp_path, number):
    changes = {"train_for": "40 steps", "checkpoint_every": "1000 steps"}
    workdir = tmp_path / "grid[lr=0.3]" / "*"  # the names are also glob patterns
    run = program(workdir, **changes, log_every="1 step")
    run.wait_for("step 2/40")
    status, output = run.send(number)
    assert status == 128 + number, output
    assert "stopped at step" in output
    assert "Traceback" not in output
    step = saved(workdir)[0]
    assert 2 <= step < 40
    status, output = program(workdir, **changes, log_every="1 step").end()
    assert status == 0
    assert f"resuming at step {step} of" in output
    train(data_dir, tmp_path / "whole", **changes, log_every="1 step")
    assert_same_end(workdir, tmp_path / "whole")


def test_a_second_run_on_one_workdir_is_refused(program, tmp_path):
    run = program(tmp_path / "run", train_for="5000 steps")
    run.wait_for("compiled the training step")
    status, output = program(tmp_path / "run", train_for="5000 steps").end()
    assert status == 2
    assert f"in use by process {run.pid} on" in output.splitlines()[-1]
    assert run.poll() is None  # the first run continues
    assert run.send(signal.SIGTERM)[0] == 143


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_with_its_own_status(program, tmp_path):
    status, output = program(
        tmp_path / "run", **{"train_for": "30 steps", "schedule.learning_rate": 1e30}
    ).end()
    assert status == 1
    assert "is not finite" in output.splitlines()[-1]
    assert "Traceback" not in output


@pytest.fixture
def small_disk(tmp_path):
    """A separate file system of 4 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if not shutil.which("mount") or os.geteuid() != 0:
        pytest.skip("only root can make a small file system")
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder])
    if made.returncode:
        pytest.skip("this machine lets nobody make a small file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(
    program, small_disk, tmp_path
):
    changes = {"train_for": "12 steps", "checkpoint_every": "4 steps"}
    filler = small_disk / "filler"
    free = shutil.disk_usage(small_disk).free
    filler.write_bytes(
        b"x" * (free - 1_260_000)
    )  # a checkpoint takes 230,000 bytes; saving needs a million more
    status, output = program(small_disk / "run", **changes).end()
    assert status == 1, output
    assert "No space left on device" in output.splitlines()[-1]
    assert "Traceback" not in output
    kept = saved(small_disk / "run")[0]
    assert kept in (4, 8)
    filler.unlink()
    status, output = program(small_disk / "run", **changes).end()
    assert status == 0, output
    assert f"resuming at step {kept} of" in output
    assert program(tmp_path / "whole", **changes).end()[0] == 0
    assert_same_end(small_disk / "run", tmp_path / "whole")
