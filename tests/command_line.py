"""Runs the programs of the package with bad input."""

import sys

import pytest

from multipath_jax.utils import cli


def refusal(program, argv, capsys, monkeypatch):
    """Runs a program, which must print an error of one line and nothing else; returns the error."""
    monkeypatch.setattr(sys, "argv", ["program", *argv])
    with pytest.raises(SystemExit) as exit_:
        cli.run(program.main)
    out, err = capsys.readouterr()
    assert (exit_.value.code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    return err.removeprefix("error: ").removesuffix("\n")
