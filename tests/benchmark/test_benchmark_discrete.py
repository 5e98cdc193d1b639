"""The benchmark of inference without inactive paths, on small batches."""

import pytest

from multipath_jax.benchmark import discrete
from multipath_jax.benchmark.rows import at_least
from multipath_jax.benchmark.settings import Problem, Settings

SETTINGS = Settings("cpu", True, 3, 0.0, 1.0, 64, 1)


@pytest.mark.slow  # compiles about thirty programs
def test_the_target_is_that_of_one_path_at_the_stated_batch(monkeypatch):
    monkeypatch.setattr(discrete, "BATCH", 8)
    problem = Problem("BaseCNN-2-CC", 8, (8, 8, 3), 10, "float32")
    monkeypatch.setattr(discrete, "CHOICES", (1,))
    (row,) = discrete._inference(SETTINGS, problem)
    assert row.target == at_least(discrete.TARGET)
    products = [row.figures[f"{name} multiply-adds an image M"] for name in ("soft", "k=1")]
    # Only one of two paths is computed; its batch is padded by up to a quarter.
    assert products[1] < 0.65 * products[0]


def test_cases_are_two_batches_of_two_networks():
    cases = [(case.network, case.batch) for case in discrete._cases(SETTINGS)]
    assert cases == [("BaseCNN-4-CC", 4), ("BaseCNN-4-CC", 1)]
    full = Settings("cpu", False, 3, 0.0, 1.0, 1, 1)
    assert {(case.network, case.batch) for case in discrete._cases(full)} == {
        (network, batch) for network in ("BaseCNN-4-CC", "ResNet20-4-CC") for batch in (256, 1)
    }
