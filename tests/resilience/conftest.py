"""Runs as processes of their own, which end with the test."""

import pytest
from runs import Program


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    from multipath_jax.data import load_dataset

    folder = tmp_path_factory.mktemp("tfds")
    load_dataset("digits", folder)
    return folder


@pytest.fixture
def program(data_dir):
    started = []

    def start(workdir, **options):
        started.append(Program(data_dir, workdir, **options))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()
