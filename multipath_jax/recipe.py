"""``--config=FILE --config.KEY=VALUE``: the flags of the programs that take a recipe."""

import re
import sys
from logging import CRITICAL, getLogger

from absl import flags, logging
from ml_collections import config_flags

from multipath_jax.errors import UserError
from multipath_jax.training import config as config_lib

CONFIG = config_flags.DEFINE_config_file("config", None, "A recipe: one of the files in configs/.")


def parse(argv: list[str]) -> list[str]:
    """Parses the flags; whatever is wrong with them or the config file ends in one line."""
    try:
        for argument in argv[1:]:
            if match := re.match(r"--?config\.([^=]+)", argument):
                config_lib.check_key(match[1])
            if match := re.match(r"--?config=([^:]+)", argument):
                _check_file(match[1])
        rest = flags.FLAGS(argv)
    except Exception as error:  # a config file is a program: anything can happen
        sys.exit(fail(_cause(error), 2))
    if flags.FLAGS["verbosity"].using_default_value:
        # Orbax warns of what is meant, and prints what it also raises, once a thread.
        logging.set_verbosity(logging.FATAL)
        getLogger("asyncio").setLevel(CRITICAL)
    return rest


def _check_file(path: str) -> None:
    try:
        with open(path):
            pass
    except OSError as error:
        raise UserError(f"the config {path} cannot be read ({error.strerror})") from error


def _cause(error: Exception) -> Exception:
    """What a user can do something about, behind the errors that the flags' parser made of it."""
    chain = [error]
    while following := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(following)
    root = chain[-1]
    if ours := [link for link in chain if isinstance(link, UserError)]:
        return ours[-1]
    if match := re.search(r'Key "([^"]+)" does not exist', str(root)):
        return _unknown_key(match[1])
    if isinstance(error, flags.Error) and "parsing config file" not in str(error):
        return error
    return UserError(f"the config file fails: {type(root).__name__}: {root}")


def _unknown_key(key: str) -> UserError:
    try:
        config_lib.check_key(key)
    except UserError as error:
        return error
    return UserError(f"the config key {key!r} is not where the config file looks for it")


def fail(error: Exception, status: int) -> int:
    """Prints one line that says what is wrong; gives the exit status."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    print(f"error: {lines[0]}", file=sys.stderr)
    return status
