"""``--config=NAME --config.KEY=VALUE``: the flags of the programs that take a recipe.

A recipe goes by its name, such as ``digits`` or ``cifar:ResNet20-3-CC``: that of a file in the
repository's folder ``configs/``, which is installed with the package. What ends in ``.py`` or has a
``/`` is the path of a file of one's own.
"""

import pathlib
import re
import sys
from collections.abc import Callable
from typing import NoReturn

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from multipath_jax.config import keys as config_lib
from multipath_jax.errors import UserError
from multipath_jax.utils import cli, filesystem
from multipath_jax.utils.names import nearest

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A recipe by its name, or a file of your own; after a colon, its argument."
)
PACKAGE = pathlib.Path(__file__).parent.parent


def run(main: Callable[[list[str]], int]) -> NoReturn:
    """As `cli.run`, the flags parsed before."""
    cli.run(lambda _: app.run(main, flags_parser=parse))


def folder() -> pathlib.Path:
    """Where the recipes are: within the package if it is installed, beside it in a checkout."""
    installed = PACKAGE / "configs"
    return installed if installed.is_dir() else PACKAGE.parent / "configs"


def names() -> list[str]:
    """Of the recipes."""
    return sorted(path.stem for path in folder().glob("*.py"))


def parse(argv: list[str]) -> list[str]:
    """Parses the flags; gives the other arguments.

    Raises:
      UserError: a flag, its value, or the config file is at fault.
    """
    try:
        argv = _with_files(flags.FLAGS.read_flags_from_files(argv, force_gnu=False))
        for argument in argv[1:]:
            if match := re.match(r"--?(?:no)?config\.([^=]+)", argument):
                config_lib.check_key(match[1])
        rest = flags.FLAGS(argv)
        if flags.FLAGS["config"].present:
            _check(CONFIG.value)
    except SystemExit:  # after --help, which is no failure
        sys.exit(0)
    except Exception as error:  # a config file is a program: anything can happen
        raise _cause(error) from error
    return rest


def _with_files(argv: list[str]) -> list[str]:
    """The arguments with the file of the config in place of its name."""
    rest, found = iter(argv), []
    for argument in rest:
        match = re.fullmatch(r"--?config(?:=(.*))?", argument, re.DOTALL)
        value = match and (next(rest, None) if match[1] is None else match[1])
        if value:
            name, colon, arguments = value.partition(":")
            argument = f"--config={find(name)}{colon}{arguments}"
        found.append(argument)
    return found


def find(name: str) -> pathlib.Path:
    """The file of a recipe, by its name or its path. Raises UserError if it cannot be read."""
    if not name.endswith(".py") and "/" not in name:
        if name not in names():
            raise UserError(
                f"there is no recipe {name!r}; {_listed(name)}; a file of your own ends in .py"
            )
        return folder() / f"{name}.py"
    path = filesystem.local("--config", name)
    try:
        with open(path):
            return path
    except OSError as error:
        same = f"--config={path.stem} is the recipe of that name"
        hint = same if path.stem in names() else _listed(path.stem)
        reason = filesystem.reason(error)
        raise UserError(f"the config {name} cannot be read ({reason}); {hint}") from error


def _listed(name: str) -> str:
    """All recipes, those with the nearest names first."""
    return f"the recipes are {nearest(name, names(), len(names()))}"


def _check(config: object) -> None:
    """Raises UserError unless it is a config with the keys of today, their values of today's types.

    And what get_config could not open, which the flags keep back until the config is looked at.
    """
    getattr(config, "keys", None)
    if not isinstance(config, ConfigDict):
        given = "nothing" if config is None else f"a {type(config).__name__}"
        raise UserError(
            f"get_config of the config file gives {given}; let it begin with config = "
            "multipath_jax.config.keys.default_config(), change values, and return config"
        )
    default, found = config_lib.default_config(), config_lib.flatten(config)
    for key in found:
        config_lib.check_key(key)
    if missing := config_lib.flatten(default).keys() - found.keys():
        raise UserError(
            f"the config file lacks the keys {', '.join(sorted(missing))}; let its get_config "
            "begin with config = multipath_jax.config.keys.default_config()"
        )
    default.update_from_flattened_dict(found)


def _cause(error: Exception) -> UserError:
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
        return UserError(str(error))
    return UserError(f"the config file fails: {type(root).__name__}: {root}")


def _unknown_key(key: str) -> UserError:
    try:
        config_lib.check_key(key)
    except UserError as error:
        return error
    return UserError(f"the config key {key!r} is not where the config file looks for it")
