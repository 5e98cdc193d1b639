"""A routed network that is small enough for end-to-end training in tests.

As a program, this file is `multipath_jax.main` with that network registered by name (`NAMED`).
Environment variables: SECONDS_A_STEP slows training down, so that a signal arrives in the middle of
it; BUCKETS is the folder of `buckets`; CLAIM sets `claims.RENEWAL`, `STALE` and `SETTLING`.
"""

import functools
import os
import sys
import time

import flax.linen as nn
import jax.numpy as jnp
from ml_collections import ConfigDict, FrozenConfigDict

from multipath_jax.config.keys import default_config
from multipath_jax.layers import CrossConnect
from multipath_jax.models import registry
from multipath_jax.models.family import Family
from multipath_jax.trainer import Trainer
from multipath_jax.training import run
from multipath_jax.training.setup import Setup

NAMED = {"model.name": "Tiny"}  # in a config: creates the network by name


class Tiny(nn.Module):
    """A convolution, two routers and a dense layer: every kind of parameter."""

    num_classes: int = 10
    features: int = 8

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Conv(self.features, (3, 3), name="conv")(images)
        x = nn.relu(nn.BatchNorm(not train, momentum=0.9, name="norm")(x))
        xs = CrossConnect(2, name="router_1")(x[None], train=train)
        xs = CrossConnect(3, name="router_2")(jnp.tanh(xs), train=train)
        return nn.Dense(self.num_classes, name="head")(xs.mean(0).reshape(len(images), -1))


FAMILIES = (*registry.FAMILIES, Family("Tiny", Tiny, ()))  # including `Tiny`


def make_setup(config):
    """A new setup with `Tiny`, not a cached one."""
    return Setup(config, model=Tiny())


def trainer(config):
    """A trainer of `Tiny`; cached by config, so that functions are compiled only once.

    If the config has the name in `NAMED`, the network is created by name, from the registry.
    """
    return _trainer(FrozenConfigDict(config))


@functools.lru_cache(maxsize=4)
def _trainer(config):
    own = config.model.name == "own:Tiny"
    return Trainer(ConfigDict(config), model=Tiny() if own else None)


def setup_of(config):
    """The setup of the cached `trainer`."""
    return trainer(config)._parts


def train(config, workdir, **options):
    """Trains with the cached `trainer`; takes the options of `Trainer.fit`."""
    return trainer(config).fit(workdir, **options)


def tiny_config(data_dir, **changes):
    """A config of six epochs of eleven steps on the digits; ``changes`` has dotted keys."""
    config = default_config()
    config.update_from_flattened_dict(
        {
            "model.name": "own:Tiny",
            "dataset.data_dir": os.fspath(data_dir),
            "dataset.shift": 1,
            "train_for": "6 epochs",
            "schedule.learning_rate": 0.5,
            "schedule.boundaries": "5 epochs",
            "log_every": "5 steps",
            "eval_every": "2 epochs",
            "checkpoint_every": "7 steps",
            "tensorboard": "off",
        }
        | changes
    )
    return config


def slow_down(seconds):
    """Makes every step take ``seconds`` longer, and keeps the number of steps per group at one."""

    def measured(pace, steps, _):
        time.sleep(seconds)

    run.Pace.measured = measured


if __name__ == "__main__":
    from multipath_jax import curves, main
    from multipath_jax.utils import claims

    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    import buckets

    buckets.register()
    curves.draw = lambda workdir: []  # drawing takes as long as training
    if claim := os.environ.get("CLAIM"):
        claims.RENEWAL, claims.STALE, claims.SETTLING = map(float, claim.split())
    registry.FAMILIES = FAMILIES
    if seconds := os.environ.get("SECONDS_A_STEP"):
        slow_down(float(seconds))
    main.run()
    sys.exit(0)
