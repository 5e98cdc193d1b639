"""Exceptions that end a program with a one-line message instead of a traceback (see `cli.run`)."""


class UserError(ValueError):
    """Invalid input. The message is one line: what is wrong and what to do. Exit status 2."""


class Failure(RuntimeError):
    """A failure with valid input, such as a full disk. The message is one line. Exit status 1."""
