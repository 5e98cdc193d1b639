"""Worker processes run when they are told to, and report why they failed."""

import time

import pytest

from multipath_jax.benchmark import process_pool, worker
from multipath_jax.benchmark.timing import OutOfTime

PROBLEM = {
    "network": "BaseCNN-2-CC",
    "batch": 2,
    "image_shape": (32, 32, 3),
    "num_classes": 10,
    "dtype": "float32",
}


@pytest.fixture
def fake_worker(tmp_path, monkeypatch):
    """Replaces the program of the worker by the given source code."""

    def use(source):
        path = tmp_path / "fake.py"
        path.write_text(source)
        popen = process_pool.subprocess.Popen
        monkeypatch.setattr(
            process_pool.subprocess,
            "Popen",
            lambda command, **options: popen([command[0], str(path), command[-1]], **options),
        )

    return use


def test_a_worker_answers_every_order(fake_worker):
    fake_worker(
        "import json, sys\n"
        "print(json.dumps({'startup': 1.0, 'compile': None}), flush=True)\n"
        "for line in sys.stdin: print(json.dumps({'seconds': 0.5 * int(line)}), flush=True)\n"
    )
    with process_pool.Worker({"kind": "ours"}) as contestant:
        assert contestant.ready == {"startup": 1.0, "compile": None}
        assert contestant(4) == 2.0
        assert contestant(1) == 0.5
    assert contestant._process.returncode == 0


def test_a_worker_that_dies_says_of_what(fake_worker):
    fake_worker("import sys; sys.exit('some.module.LostError: no more memory\\nand some advice')")
    with pytest.raises(
        process_pool.WorkerFailed, match=r"^some\.module\.LostError: no more memory$"
    ):
        process_pool.Worker({"kind": "ours"})


def test_a_worker_that_dies_between_turns_says_of_what(fake_worker):
    fake_worker("print('{}', flush=True); input(); raise ValueError('too many steps')")
    with (
        process_pool.Worker({"kind": "ours"}) as contestant,
        pytest.raises(process_pool.WorkerFailed, match="ValueError: too many steps"),
    ):
        contestant(3)


SLEEPS = "import sys, time; print('{}', flush=True); input(); time.sleep(600)"


@pytest.mark.parametrize(
    ("limits", "error"),
    [({"patience": 0.5}, process_pool.WorkerFailed), ({"until": time.monotonic()}, OutOfTime)],
)
def test_a_worker_that_takes_too_long_is_ended(fake_worker, limits, error):
    fake_worker("import time; time.sleep(600)")
    with pytest.raises(error, match=r"within 0 s|the time limit is reached"):
        process_pool.Worker({"kind": "ours"}, **limits)


def test_a_turn_is_cut_short_when_the_time_is_over(fake_worker):
    fake_worker(SLEEPS)
    with process_pool.Worker({"kind": "ours"}, until=time.monotonic() + 5) as contestant:
        contestant._until = time.monotonic() + 0.2
        with pytest.raises(OutOfTime):
            contestant(1)
    assert contestant._process.returncode == -9  # killed, not waited for


def test_what_compiles_within_the_first_step_is_told_apart():
    seconds, said = iter([7.5, 0.5, 3.0]), []
    worker.serve(lambda _: next(seconds), ["6"], lambda **told: said.append(told), lambda: 20.0)
    assert said == [{"startup": 20.0, "compile": 7.0}, {"seconds": 3.0}]


def test_the_real_worker_refuses_a_network_that_the_peer_lacks():
    spec = {"kind": "nn.vmap", "problem": PROBLEM | {"network": "VGG16"}, "platform": "cpu"}
    with pytest.raises(process_pool.WorkerFailed, match=r"the nn\.vmap peer has no VGG16"):
        process_pool.Worker(spec)


def test_a_problem_travels_through_json():
    assert worker._problem({"problem": PROBLEM | {"image_shape": [32, 32, 3]}}).image_shape == (
        32,
        32,
        3,
    )
