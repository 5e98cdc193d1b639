"""Fixtures: a file with the weights of a small network, and a run imported from it."""

import definitions
import numpy as np
import pytest
import safetensors.numpy

from multipath_jax import import_weights

STATISTICS = ["--mean=0.25", "--std=0.5"]


@pytest.fixture(scope="session")
def arrays():
    """Random weights of He et al.'s form of ResNet8, for the digits data set."""
    return definitions.drawn(definitions.resnet8, np.zeros((1, 1, 8, 8), np.float32))


@pytest.fixture(scope="session")
def file(arrays, tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / "resnet8.safetensors"
    safetensors.numpy.save_file(arrays, path)
    return path


@pytest.fixture(scope="session")
def imported(file, data_dir, tmp_path_factory):
    """The workdir of a run imported from the file."""
    workdir = tmp_path_factory.mktemp("imported") / "run"
    flags = [f"--from={file}", "--model=ResNet8", f"--data_dir={data_dir}", *STATISTICS]
    assert import_weights.main([*flags, "--dataset=digits", f"--workdir={workdir}"]) == 0
    return workdir
