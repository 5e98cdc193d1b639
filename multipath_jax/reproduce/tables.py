"""The recipes of the rows of the tables, and changes to them."""

import contextlib
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
from multipath_jax.models import paper, registry
from multipath_jax.models.family import CIFAR
from multipath_jax.utils.names import nearest

# The recipes: the paper's, and one with fewer epochs (`recipes.fast`).
PROTOCOL, FAST = "protocol", "fast"
RECIPES = (PROTOCOL, FAST)
# The titles of the runs: one run for each column of Tables 2 and 3, one for all of Table 4.
IMAGENET = "imagenet"
RUNS = {name: paper.COLUMNS[name] for name in ("cifar10", "cifar10_350", "cifar100")} | {
    IMAGENET: "ImageNet"
}
# The keys in `metrics.jsonl` of the columns of Table 4.
MEASURES = {
    "top1": "test/error",
    "top5": "test/top5_error",
    "top1_10crop": "test/ten_crop_error",
    "top5_10crop": "test/ten_crop_top5_error",
}
TRIALS = {2: 3, 3: 3, 4: 1}  # by table; the paper states none for Table 4
# Keys of the initial weights, which are free when a run resumes, but alter a trial.
INITIAL = {*config_lib.INITIAL_KEYS}
# Keys that may differ from the recipe without altering a trial: the keys that do not change
# results, the seed, and the type of the computation.
CHOSEN = {*config_lib.FREE_KEYS, "seed", "trials", "dtype"} - INITIAL
# Keys that are not part of a trial's changes, being stored separately or not at all. The type is
# part of them: trials with different types are different trials.
APART = CHOSEN - {"dtype"} | {"train_for"}
# Keys that are set by separate flags.
FLAGS = {
    "model.name": "--rows",
    "train_for": "--epochs",
    "trials": "--trials",
    "seed": "--trials (the seeds are 0, 1, ...)",
}


@dataclasses.dataclass(frozen=True)
class Campaign:
    """The trials of one row for one of `RUNS`.

    Attributes:
      row: the row of a table.
      column: a key of `RUNS`.
      config: the recipe with the requested changes.
      folder: folder of the trials' workdirs, relative to that of all campaigns.
      recipe: one of `RECIPES`.
    """

    row: paper.Row
    column: str
    config: ConfigDict
    folder: str
    recipe: str = PROTOCOL

    @property
    def name(self) -> str:
        """The title of the campaign."""
        how = "" if self.recipe == PROTOCOL else f", {self.recipe} recipe"
        return f"{self.row.network}, {RUNS[self.column]}{how}"

    def trial(self, seed: int) -> dict[str, Any]:
        """The keys that identify a trial in the ledger.

        These are the network, the data, the seed, the epochs, and the differences from the named
        recipe, so that keys that are added to the config later do not change the identity.
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
    """The config of a row for one of `RUNS`, by default the paper's."""
    if name == FAST:
        return recipes.fast(row.model, dataset=column)
    if column == IMAGENET:
        return recipes.imagenet(row.model, subset=row.num_classes == 100)
    if column == "cifar10_350":
        return recipes.cifar(row.model, 350)
    return recipes.cifar(row.model, dataset=column)


def run_of(column: str) -> str:
    """The key of `RUNS` for a column of the tables."""
    return IMAGENET if column in MEASURES else column


def columns(row: paper.Row) -> tuple[str, ...]:
    """The columns of a row; a network that is not in the paper has those of CIFAR."""
    return tuple(row.errors) if row.table else recipes.DATASETS


def runs(row: paper.Row, name: str = PROTOCOL) -> list[str]:
    """The runs for the columns of a row; the fast recipe is only for CIFAR."""
    found = dict.fromkeys(map(run_of, columns(row)))
    return [run for run in found if name == PROTOCOL or run in recipes.DATASETS]


# Which rows


def select(
    table: int, names: Sequence[str] = (), recipe: str = PROTOCOL
) -> list[tuple[paper.Row, str]]:
    """Selects rows and their runs; those of the column cifar10 come first.

    Args:
      table: 2, 3 or 4.
      names: names of networks or models, with ``:run`` for a single run. If empty, all rows in the
        order of the table. Beside Tables 2 and 3, networks that are not in the paper can be named;
        their run is that of CIFAR-10 unless stated.
      recipe: one of `RECIPES`.

    Raises:
      UserError: the table has no such row or column, or the recipe does not apply.
    """
    if not any(runs(row, recipe) for row in paper.rows(table)):
        raise UserError(f"--recipe={recipe} is only for CIFAR, not for table{table}")
    if names:
        found = [pair for name in names for pair in _named(table, name, recipe)]
    else:
        found = [(row, column) for row in paper.rows(table) for column in runs(row, recipe)]
    return sorted(dict.fromkeys(found), key=lambda pair: pair[1] != "cifar10")


def _named(table: int, text: str, recipe: str) -> list[tuple[paper.Row, str]]:
    """The runs that ``NAME`` or ``NAME:column`` selects."""
    name, colon, column = text.partition(":")
    known = {key: row for row in paper.rows(table) for key in (row.model, row.network)}
    row = known.get(name) or _unprinted(table, name, known)
    all_runs = runs(row, recipe)
    if colon and column not in all_runs:
        raise UserError(f"--rows: {name} is trained for {', '.join(all_runs)}, not for {column!r}")
    if not colon and not row.table:
        all_runs = all_runs[:1]
    return [(row, column)] if colon else [(row, column) for column in all_runs]


def _unprinted(table: int, name: str, known: Mapping[str, paper.Row]) -> paper.Row:
    """The row of a CIFAR network that is not in the paper; UserError for all other names."""
    printed = any(name in (row.model, row.network) for row in paper.ROWS)
    shape = None
    with contextlib.suppress(UserError):
        shape = registry.family_of(name).image_shape
    if printed or table == 4 or shape != CIFAR:
        raise UserError(_unknown_row(table, name, known))
    return paper.unprinted(name)


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
    """Makes the campaign of a row for one of `RUNS`.

    Args:
      row: the row of a table.
      column: a key of `RUNS`.
      changes: values as text by config key.
      epochs: if given, shorten the recipe to this many epochs.
      name: one of `RECIPES`.

    Raises:
      UserError: a change or the number of epochs is invalid.
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
    _check_comparable(config)
    return Campaign(row, column, config, f"{folder}/{row.model}", name)


def _check_comparable(config: ConfigDict) -> None:
    """Raises UserError for keys with which a trial would not be one of the tables."""
    data = config.dataset
    refused = {
        "dataset.holdout": (data.holdout, "the tables have errors on test splits"),
        "patience": (config.patience, "the tables have errors at the end of training"),
        "dataset.name": (config_lib.several(data.name), "the tables are of one data set"),
        "dataset.source": (data.source, "the tables are of prepared data sets"),
    }
    for key, (value, reason) in refused.items():
        if value:
            raise UserError(f"--set {key}: {reason}; use multipath_jax.main for other runs")


def shorten(config: ConfigDict, epochs: float) -> None:
    """Sets the number of epochs, and scales the warm-up and the boundaries by the same factor.

    Raises:
      UserError: the number is less than 0.01 or more than the recipe's.
    """
    whole = parse_duration("train_for", config.train_for).number
    if not 0.01 <= epochs <= whole:
        raise UserError(f"--epochs={epochs:g} must be from 0.01 to the recipe's {whole:g}")
    config.train_for = f"{epochs:g} epochs"
    for key in ("warmup", "boundaries"):
        durations = parse_durations(f"schedule.{key}", config.schedule[key])
        scaled = [f"{duration.number * epochs / whole:.6g} epochs" for duration in durations]
        config.schedule[key] = ", ".join(scaled)


def override(config: ConfigDict, changes: Mapping[str, str]) -> None:
    """Sets config keys from text. Raises UserError for unknown keys and invalid values."""
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
    """Parses ``KEY=VALUE`` items. Raises UserError for other forms, and for keys in `FLAGS`."""
    changes = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals:
            raise UserError(f"--set {item}: write KEY=VALUE, such as --set dtype=bfloat16")
        if key in FLAGS:
            raise UserError(f"--set {key}: use {FLAGS[key]} instead")
        changes[key] = value
    return changes


# What was changed


def is_shortened(row: paper.Row, column: str, train_for: str, name: str = PROTOCOL) -> bool:
    """Whether ``train_for`` is less than the recipe's, or a number of steps."""
    asked = parse_duration("train_for", train_for)
    whole = parse_duration("train_for", recipe(row, column, name).train_for)
    return asked.unit != whole.unit or asked.number < whole.number


def changes_to(
    row: paper.Row, column: str, config: ConfigDict, name: str = PROTOCOL
) -> dict[str, Any]:
    """The values of a config that differ from the recipe (after shortening), by key."""
    wanted = recipe(row, column, name)
    if is_shortened(row, column, config.train_for, name):
        asked = parse_duration("train_for", config.train_for)
        if asked.unit == "epochs":
            shorten(wanted, asked.number)
    wanted, flat = config_lib.flatten(wanted), config_lib.flatten(config)
    return {key: flat[key] for key in wanted if key not in APART and flat[key] != wanted[key]}


def altering(changed: Mapping[str, Any]) -> list[str]:
    """The changed keys that alter the recipe, sorted."""
    return sorted(key for key in changed if key not in CHOSEN)


def _digest(values: Mapping[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
