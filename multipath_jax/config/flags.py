"""``--config=NAME --config.KEY=VALUE``: the flags of the programs that take a recipe.

A recipe is given by name, such as ``digits`` or ``cifar:ResNet20-3-CC``. The name is that of a file
in the repository's folder ``configs/``, which is installed with the package. A value that ends in
``.py`` or contains a ``/`` is the path of a user's own config file.
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
    """Parses the flags and runs ``main`` by `cli.run`."""
    cli.run(lambda _: app.run(main, flags_parser=parse))


def folder() -> pathlib.Path:
    """The folder of recipes: inside the package if installed, beside it in a checkout."""
    installed = PACKAGE / "configs"
    return installed if installed.is_dir() else PACKAGE.parent / "configs"


def names() -> list[str]:
    """The names of all recipes, sorted."""
    return sorted(path.stem for path in folder().glob("*.py"))


def parse(argv: list[str]) -> list[str]:
    """Parses the flags.

    Returns:
      The positional arguments.

    Raises:
      UserError: a flag, its value, or the config file is invalid.
    """
    try:
        argv = _with_files(flags.FLAGS.read_flags_from_files(argv, force_gnu=False))
        for argument in argv[1:]:
            if match := re.match(r"--?(?:no)?config\.([^=]+)", argument):
                config_lib.check_key(match[1])
        rest = flags.FLAGS(argv)
        if flags.FLAGS["config"].present:
            _check(CONFIG.value)
    except SystemExit:  # absl exits with 1 after --help
        sys.exit(0)
    except Exception as error:  # a config file is Python code, which can raise anything
        raise _cause(error) from error
    return rest


def _with_files(argv: list[str]) -> list[str]:
    """Replaces the name of the config in the arguments by the path of its file."""
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
    """The file of a recipe.

    Args:
      name: a recipe's name, or the path of a config file.

    Raises:
      UserError: there is no such recipe, or the file cannot be read.
    """
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
    """A sentence that lists all recipes, the nearest names first."""
    return f"the recipes are {nearest(name, names(), len(names()))}"


def _check(config: object) -> None:
    """Raises UserError unless ``config`` has exactly the keys and value types of `default_config`.

    Also raises the exceptions of ``get_config``, which config_flags defers until the first access.
    """
    getattr(config, "keys", None)
    if not isinstance(config, ConfigDict):
        given = "nothing" if config is None else f"a {type(config).__name__}"
        raise UserError(
            f"get_config of the config file returns {given}; begin it with config = "
            "multipath_jax.config.keys.default_config(), change values, and return config"
        )
    default, found = config_lib.default_config(), config_lib.flatten(config)
    for key in found:
        config_lib.check_key(key)
    if missing := config_lib.flatten(default).keys() - found.keys():
        raise UserError(
            f"the config file lacks the keys {', '.join(sorted(missing))}; begin its get_config "
            "with config = multipath_jax.config.keys.default_config()"
        )
    default.update_from_flattened_dict(found)


def _cause(error: Exception) -> UserError:
    """The UserError to report for an error that the flags' parser raised, possibly wrapped."""
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
    return UserError(f"the config file uses {key!r} in the wrong section of the config")
