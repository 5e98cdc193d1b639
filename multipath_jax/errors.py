"""The one kind of error that a user can mend."""


class UserError(ValueError):
    """Bad input: one line that says what is wrong and what to do about it.

    The runnable modules print its message without a traceback and exit with status 2.
    """
