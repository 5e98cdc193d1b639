"""A fixture for runs in subprocesses, which are killed at the end of the test."""

import pytest
from runs import Run


@pytest.fixture
def program(data_dir):
    started = []

    def start(workdir, **options):
        started.append(Run(data_dir, workdir, **options))
        return started[-1]

    yield start
    for one in started:
        one.kill()
        one.end()
