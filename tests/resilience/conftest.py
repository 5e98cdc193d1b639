"""Runs as processes of their own, which end with the test."""

import pytest
from runs import Program


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
