"""A two-path routed network on scikit-learn's handwritten digits: the default.

Command:   python -m multipath_jax.main --config=digits --workdir=runs/digits
Time:      41 s on 2 idle CPU cores, including 8 s to compile the step; twice that on busy ones
Error:     0.85 % on the held-out digits (3 of 355; the same for seeds 0, 1 and 2)
"""

from ml_collections import ConfigDict

from multipath_jax import recipes


def get_config() -> ConfigDict:
    return recipes.digits()
