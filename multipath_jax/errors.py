"""The errors that end a program with one line instead of a traceback (see `cli.run`)."""


class UserError(ValueError):
    """Bad input: one line that says what is wrong and what to do about it; exit status 2."""


class Failure(RuntimeError):
    """Good input that came to a bad end, such as a full disk: one line, and exit status 1."""
