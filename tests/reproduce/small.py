"""Runs `multipath_jax.reproduce` as a program, with a small network in place of the paper's.

Campaigns train rows of the paper's tables by name, so the small network is registered under such
names.
"""

import pathlib
import sys

sys.path.append(str(pathlib.Path(__file__).parents[1] / "training"))

import tiny

from multipath_jax.models import registry
from multipath_jax.models.family import Family

FAMILIES = (Family("BaseCNN|WideCNN", tiny.Tiny, ()), *registry.FAMILIES)

if __name__ == "__main__":
    from multipath_jax.reproduce.__main__ import main
    from multipath_jax.utils import cli

    registry.FAMILIES = FAMILIES
    cli.run(main)
