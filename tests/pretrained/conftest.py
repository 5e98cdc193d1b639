"""A file of a small network's weights, and a run made of it."""

import definitions
import numpy as np
import pytest
import safetensors.numpy

from multipath_jax import import_weights

STATISTICS = ["--mean=0.25", "--std=0.5"]


@pytest.fixture(scope="session")
def arrays():
    """He et al.'s form of ResNet8, for the digits."""
    return definitions.drawn(definitions.resnet8, np.zeros((1, 1, 8, 8), np.float32))


@pytest.fixture(scope="session")
def file(arrays, tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / "resnet8.safetensors"
    safetensors.numpy.save_file(arrays, path)
    return path


@pytest.fixture(scope="session")
def imported(file, data_dir, tmp_path_factory):
    """The workdir."""
    workdir = tmp_path_factory.mktemp("imported") / "run"
    flags = [f"--from={file}", "--model=ResNet8", f"--data_dir={data_dir}", *STATISTICS]
    assert import_weights.main([*flags, "--dataset=digits", f"--workdir={workdir}"]) == 0
    return workdir
