"""A routed network small enough to train whole runs in tests.

As a program it is `multipath_jax.main`, which knows that network by the name of `NAMED`. In its
environment SECONDS_A_STEP slows it down, so that a signal finds it in the middle; BUCKETS names the
folder of `buckets`, and CLAIM the seconds of claims there.
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

NAMED = {"model.name": "Tiny"}  # of a config, for what knows networks by their names alone


class Tiny(nn.Module):
    """One convolution, two routers, one dense layer: every kind of parameter there is."""

    num_classes: int = 10
    features: int = 8

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Conv(self.features, (3, 3), name="conv")(images)
        x = nn.relu(nn.BatchNorm(not train, momentum=0.9, name="norm")(x))
        xs = CrossConnect(2, name="router_1")(x[None], train=train)
        xs = CrossConnect(3, name="router_2")(jnp.tanh(xs), train=train)
        return nn.Dense(self.num_classes, name="head")(xs.mean(0).reshape(len(images), -1))


FAMILIES = (*registry.FAMILIES, Family("Tiny", Tiny, ()))  # the table with it


def make_setup(config):
    """A new one."""
    return Setup(config, model=Tiny())


def trainer(config):
    """A trainer of `Tiny`; of the same config it is the same one, with all that it has compiled.

    A network that the config names by `NAMED` is found in the table.
    """
    return _trainer(FrozenConfigDict(config))


@functools.lru_cache(maxsize=4)
def _trainer(config):
    own = config.model.name == "own:Tiny"
    return Trainer(ConfigDict(config), model=Tiny() if own else None)


def setup_of(config):
    """The setup of `trainer`."""
    return trainer(config)._parts


def train(config, workdir, **options):
    """Trains with `trainer`; the options are those of `Trainer.fit`."""
    return trainer(config).fit(workdir, **options)


def tiny_config(data_dir, **changes):
    """Six epochs of eleven steps on the digits; ``changes`` by dotted key."""
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
    """Every step takes so long, and is looked after by itself."""

    def measured(pace, steps, _):
        time.sleep(seconds)

    run.Pace.measured = measured


if __name__ == "__main__":
    from multipath_jax import curves, main
    from multipath_jax.utils import claims

    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    import buckets

    buckets.register()
    curves.draw = lambda workdir: []  # it would take as long as to train
    if claim := os.environ.get("CLAIM"):
        claims.RENEWAL, claims.STALE, claims.SETTLING = map(float, claim.split())
    registry.FAMILIES = FAMILIES
    if seconds := os.environ.get("SECONDS_A_STEP"):
        slow_down(float(seconds))
    main.run()
    sys.exit(0)
