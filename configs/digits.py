"""A two-path routed network on scikit-learn's handwritten digits: the default.

Command:   python -m multipath_jax.main --config=configs/digits.py --workdir=runs/digits
Time:      TODO on 2 CPU cores, compilation included
Error:     TODO % of the 359 held-out digits
"""

from ml_collections import ConfigDict

from multipath_jax.training.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.model.name = "BaseCNN-2-CC"
    config.dataset.name = "digits"
    config.dataset.shift = 1  # of 8 pixels; digits have no mirror images
    config.batch_size = 64
    config.train_for = "20 epochs"
    config.schedule.rate = 0.05
    config.schedule.drops = "12 epochs, 17 epochs"
    return config
