"""The benchmark of the loop against the bare step, and the data set of random images."""

import numpy as np

from multipath_jax.benchmark import random_images
from multipath_jax.benchmark.loop import WARM_UP, TurnTaking, run_config
from multipath_jax.benchmark.settings import Problem
from multipath_jax.config.keys import default_config, validate
from multipath_jax.data import load_dataset

PROBLEM = Problem("BaseCNN-2-CC", 2, (32, 32, 3), 10, "float32")


def test_the_turns_of_the_loop_are_all_between_two_questions():
    now, taken, turns_of_bare = [0.0], [0], []

    def bare(calls):
        now[0] += 100.0  # not counted as time of the loop
        turns_of_bare.append(calls)
        return 1.5 * calls

    turns = TurnTaking(lambda: taken[0], bare, rounds=2, clock=lambda: now[0])
    answers = []
    for steps in (1, 5, 5, 5, 4, 10):
        now[0] += 2.0 * steps
        taken[0] += steps
        answers.append(turns())
    assert answers == [False] * (WARM_UP + 2) + [True]
    assert turns_of_bare == [5, 5, 5, 4, 10]
    np.testing.assert_array_equal(turns.times().seconds["loop"], [2.0, 2.0])
    assert turns.times().ratio("bare", "loop").median == 0.75


def test_random_images_are_a_data_set(tmp_path):
    name = random_images.prepare(str(tmp_path), count=7)
    dataset = load_dataset(name, tmp_path)
    assert dataset.train.images.shape == (7, 32, 32, 3)
    assert dataset.test.images.shape == (random_images.TEST, 32, 32, 3)
    assert dataset.num_classes == 10


def test_the_config_of_a_run_is_valid():
    config = default_config()
    config.update_from_flattened_dict(run_config(PROBLEM, "/nowhere"))
    validate(config)
    assert config.model.name == "BaseCNN-2-CC"
