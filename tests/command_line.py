"""Runnable modules given bad input."""

import sys

import pytest

from multipath_jax.utils import cli


def refusal(program, argv, capsys, monkeypatch):
    """The one line that a module's ``main`` says of these arguments, with nothing else printed."""
    monkeypatch.setattr(sys, "argv", ["program", *argv])
    with pytest.raises(SystemExit) as exit_:
        cli.run(program.main)
    out, err = capsys.readouterr()
    assert (exit_.value.code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    return err.removeprefix("error: ").removesuffix("\n")
