"""`multipath_jax.reproduce` as a program, with a network of the tests in place of every other."""

import pathlib
import sys

sys.path.append(str(pathlib.Path(__file__).parents[1] / "training"))

import tiny

if __name__ == "__main__":
    from multipath_jax.reproduce.__main__ import main
    from multipath_jax.training import setup
    from multipath_jax.utils import cli

    setup.create_model = tiny.create_model
    cli.run(main)
