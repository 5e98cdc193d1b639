"""Which recipe a row of a table is trained by, and what of it was changed."""

import copy
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from multipath_jax import recipes
from multipath_jax.config import keys as config_lib
from multipath_jax.config.schedule import parse_duration, parse_durations
from multipath_jax.errors import UserError
from multipath_jax.models import paper
from multipath_jax.utils.names import nearest

# The recipes: the paper's, and ours of fewer epochs (`recipes.fast`).
PROTOCOL, FAST = "protocol", "fast"
RECIPES = (PROTOCOL, FAST)
# What a network is trained for: a column of Table 2 or 3, or all of Table 4's; its name in print.
IMAGENET = "imagenet"
RUNS = {name: paper.COLUMNS[name] for name in ("cifar10", "cifar10_350", "cifar100")} | {
    IMAGENET: "ImageNet"
}
# The columns of Table 4 as one run's `metrics.jsonl` calls them.
MEASURES = {
    "top1": "test/error",
    "top5": "test/top5_error",
    "top1_10crop": "test/ten_crop_error",
    "top5_10crop": "test/ten_crop_top5_error",
}
TRIALS = {2: 3, 3: 3, 4: 1}  # by table; the paper names none for Table 4
# What a trial may choose and still be the protocol's: what changes no result, but for starting
# from other weights, and the type of the computation.
CHOSEN = {*config_lib.FREE_KEYS, "seed", "trials", "dtype"} - {"init_from"}
# Keys of the config that a trial's line has by themselves, or not at all. The type is not one of
# them: trials of other types of computation are other trials.
APART = CHOSEN - {"dtype"} | {"train_for"}
# Keys that a flag of its own sets.
FLAGS = {
    "model.name": "--rows",
    "train_for": "--epochs",
    "trials": "--trials",
    "seed": "--trials (the seeds are 0, 1, ...)",
}


@dataclasses.dataclass(frozen=True)
class Campaign:
    """The trials of one row in one column, or in all of Table 4's.

    Attributes:
      column: one of `RUNS`.
      config: the recipe, with the changes asked for; its seed is that of the first trial.
      folder: of the trials' workdirs, within that of all campaigns.
      recipe: one of `RECIPES`.
    """

    row: paper.Row
    column: str
    config: ConfigDict
    folder: str
    recipe: str = PROTOCOL

    @property
    def name(self) -> str:
        """As it is called in print."""
        how = "" if self.recipe == PROTOCOL else f", {self.recipe} recipe"
        return f"{self.row.network}, {RUNS[self.column]}{how}"

    def trial(self, seed: int) -> dict[str, Any]:
        """Which trial one of them is, as in its line of the ledger: no two lines share it.

        That is the network, the data, the seed, the epochs, and what differs from the recipe by its
        name, so that keys which the config gains later make no other trial of it.
        """
        return {
            "recipe": self.recipe,
            "model": self.row.model,
            "column": self.column,
            "seed": seed,
            "train_for": self.config.train_for,
            "changed": changes_to(self.row, self.column, self.config, self.recipe),
        }

    def of_seed(self, seed: int) -> ConfigDict:
        """The config of one trial."""
        config = copy.deepcopy(self.config)
        config.seed = seed
        return config


def recipe(row: paper.Row, column: str, name: str = PROTOCOL) -> ConfigDict:
    """The config by which a row's network is trained for one of `RUNS`; by default the paper's."""
    if name == FAST:
        return recipes.fast(row.model, dataset=column)
    if column == IMAGENET:
        return recipes.imagenet(row.model, subset=row.num_classes == 100)
    if column == "cifar10_350":
        return recipes.cifar(row.model, 350)
    return recipes.cifar(row.model, dataset=column)


def run_of(column: str) -> str:
    """Which of `RUNS` gives a column of the tables."""
    return IMAGENET if column in MEASURES else column


def runs(row: paper.Row, name: str = PROTOCOL) -> list[str]:
    """What gives a row's columns, all of them by the protocol; our recipe is of CIFAR alone."""
    found = dict.fromkeys(map(run_of, row.errors))
    return [run for run in found if name == PROTOCOL or run in recipes.DATASETS]


# Which rows


def select(
    table: int, names: Sequence[str] = (), recipe: str = PROTOCOL
) -> list[tuple[paper.Row, str]]:
    """Rows and their runs, CIFAR-10 at the protocol's own length before all else.

    Args:
      names: of rows, by network or model, each with ``:run`` or for all its runs; none are
        all rows. Rows come in this order, else in the table's.
      recipe: one of `RECIPES`, by which they are to be trained.

    Raises:
      UserError: a row or a column that the table does not have, or that the recipe is not for.
    """
    if not any(runs(row, recipe) for row in paper.rows(table)):
        raise UserError(f"--recipe={recipe} is for CIFAR, and table{table} is not")
    if names:
        found = [pair for name in names for pair in _named(table, name, recipe)]
    else:
        found = [(row, column) for row in paper.rows(table) for column in runs(row, recipe)]
    return sorted(dict.fromkeys(found), key=lambda pair: pair[1] != "cifar10")


def _named(table: int, text: str, recipe: str) -> list[tuple[paper.Row, str]]:
    """The runs of one row: ``NAME`` or ``NAME:column``."""
    name, colon, column = text.partition(":")
    known = {key: row for row in paper.rows(table) for key in (row.model, row.network)}
    if name not in known:
        raise UserError(_unknown_row(table, name, known))
    row, all_runs = known[name], runs(known[name], recipe)
    if colon and column not in all_runs:
        raise UserError(f"--rows: {name} is trained for {', '.join(all_runs)}, not for {column!r}")
    return [(row, column)] if colon else [(row, column) for column in all_runs]


def _unknown_row(table: int, name: str, known: Mapping[str, paper.Row]) -> str:
    elsewhere = [row.table for row in paper.ROWS if name in (row.model, row.network)]
    if elsewhere:
        return f"--rows: {name} is a row of table{elsewhere[0]}, not of table{table}"
    return f"--rows: table{table} has no row {name!r}; the nearest is {nearest(name, known)}"


# How they are trained


def campaign(
    row: paper.Row,
    column: str,
    changes: Mapping[str, str],
    epochs: float | None = None,
    name: str = PROTOCOL,
) -> Campaign:
    """The trials of a row in one of `RUNS`, by a recipe as changed.

    Args:
      changes: text by key of the config.
      epochs: fewer than the recipe's, if given.
      name: of the recipe.

    Raises:
      UserError: a change or a number of epochs that cannot be.
    """
    config = recipe(row, column, name)
    folder = column if name == PROTOCOL else f"{name}/{column}"
    if epochs is not None:
        shorten(config, epochs)
        short = is_shortened(row, column, config.train_for, name)
        folder += f"-{epochs:g}epochs" if short else ""
    override(config, changes)
    changed = changes_to(row, column, config, name)
    if altered := altering(changed):
        folder += f"-altered-{_digest({key: changed[key] for key in altered})[:6]}"
    config_lib.validate(config)
    if config.dataset.holdout:
        raise UserError(
            "--set dataset.holdout: these tables hold errors of test splits; hold images out with "
            "multipath_jax.main"
        )
    return Campaign(row, column, config, f"{folder}/{row.model}", name)


def shorten(config: ConfigDict, epochs: float) -> None:
    """Trains for so many epochs, the rate's warm-up and boundaries moved by the same factor.

    Raises:
      UserError: none, or more than the recipe's.
    """
    whole = parse_duration("train_for", config.train_for).number
    if not 0.01 <= epochs <= whole:
        raise UserError(
            f"--epochs={epochs:g} must be from 0.01 to the recipe's {whole:g}; it shortens"
        )
    config.train_for = f"{epochs:g} epochs"
    for key in ("warmup", "boundaries"):
        durations = parse_durations(f"schedule.{key}", config.schedule[key])
        scaled = [f"{duration.number * epochs / whole:.6g} epochs" for duration in durations]
        config.schedule[key] = ", ".join(scaled)


def override(config: ConfigDict, changes: Mapping[str, str]) -> None:
    """Sets keys from text. Raises UserError for a key or a value that cannot be."""
    for key, text in changes.items():
        config_lib.check_key(key)
        old = config_lib.flatten(config)[key]
        try:
            value = {"True": True, "False": False}[text] if type(old) is bool else type(old)(text)
        except (ValueError, KeyError) as error:
            kind = type(old).__name__
            raise UserError(f"--set {key}={text}: the value must be of type {kind}") from error
        config.update_from_flattened_dict({key: value})


def parse_changes(items: Sequence[str]) -> dict[str, str]:
    """``KEY=VALUE`` items as a dict. Raises UserError for another form, or a flag's own key."""
    changes = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals:
            raise UserError(f"--set {item}: write KEY=VALUE, such as --set dtype=bfloat16")
        if key in FLAGS:
            raise UserError(f"--set {key}: that is what {FLAGS[key]} is for")
        changes[key] = value
    return changes


# What was changed


def is_shortened(row: paper.Row, column: str, train_for: str, name: str = PROTOCOL) -> bool:
    """Whether ``train_for`` is less than the recipe's; a number of steps is."""
    asked = parse_duration("train_for", train_for)
    whole = parse_duration("train_for", recipe(row, column, name).train_for)
    return asked.unit != whole.unit or asked.number < whole.number


def changes_to(
    row: paper.Row, column: str, config: ConfigDict, name: str = PROTOCOL
) -> dict[str, Any]:
    """What of a config is not the recipe's, beyond being shortened, by key."""
    wanted = recipe(row, column, name)
    if is_shortened(row, column, config.train_for, name):
        asked = parse_duration("train_for", config.train_for)
        if asked.unit == "epochs":
            shorten(wanted, asked.number)
    wanted, flat = config_lib.flatten(wanted), config_lib.flatten(config)
    return {key: flat[key] for key in wanted if key not in APART and flat[key] != wanted[key]}


def altering(changed: Mapping[str, Any]) -> list[str]:
    """The keys among those changed that make it a trial by another recipe."""
    return sorted(key for key in changed if key not in CHOSEN)


def _digest(values: Mapping[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
