"""Training the trials of a row, and adding finished trials to the ledger."""

import dataclasses
import datetime
import itertools
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from multipath_jax import checkpoints
from multipath_jax.config import keys as config_lib
from multipath_jax.config.schedule import parse_duration
from multipath_jax.data.prepared import open_prepared
from multipath_jax.metrics_file import read_metrics
from multipath_jax.models import paper
from multipath_jax.models.complexity import Complexity, complexity
from multipath_jax.parallel.compilation import enable_compilation_cache
from multipath_jax.parallel.devices import compute_dtype
from multipath_jax.reproduce import tables
from multipath_jax.reproduce.ledger import Ledger, Line, identity
from multipath_jax.reproduce.tables import Campaign
from multipath_jax.training import setup
from multipath_jax.training.run import Result, TrainingFailed
from multipath_jax.trials import train_trials
from multipath_jax.utils.stopping import Stopping

PACKAGES = ("jax", "jaxlib", "flax", "optax", "multipath_jax")
BUDGET_SPENT = 3  # the exit status
EVERY_EPOCH = config_lib.default_config().checkpoint_every


@dataclasses.dataclass(frozen=True)
class Position:
    """The progress of an unfinished trial.

    Attributes:
      seed: seed of the trial.
      step: number of steps taken.
      total: number of steps of the whole training.
    """

    seed: int
    step: int
    total: int

    def __str__(self) -> str:
        return f"seed {self.seed}, at step {self.step} of {self.total}"


@dataclasses.dataclass(frozen=True)
class Place:
    """The output locations of the trials.

    Attributes:
      workdir: parent folder of all workdirs.
      ledger: the ledger for finished trials.
    """

    workdir: epath.Path
    ledger: Ledger

    def folder(self, campaign: Campaign) -> epath.Path:
        """The parent folder of the trials of a campaign."""
        return self.workdir / campaign.folder

    def trial(self, campaign: Campaign, seed: int) -> epath.Path:
        """The workdir of one trial."""
        return self.folder(campaign) / f"seed_{seed}"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The outcome of a command.

    Attributes:
      status: exit status.
      text: one line about the progress.
    """

    status: int
    text: str


def train_all(
    campaigns: Sequence[Campaign], trials: int, place: Place, stopping: Stopping
) -> Outcome:
    """Trains all unfinished trials, campaign by campaign, and continues after failures.

    Args:
      campaigns: the campaigns.
      trials: number of trials of each.
      place: the output locations.
      stopping: whether to stop.

    Raises:
      UserError: a config is invalid; raised before anything is trained, if possible.
    """
    for campaign in campaigns:
        check(campaign, open_seeds(campaign, trials, place.ledger), place)
    place.ledger.prepare()
    enable_compilation_cache(campaigns[0].config.compilation_cache)
    failures, stopped = [], ""
    for campaign in campaigns:
        if stopping():
            break
        try:
            position = run(campaign, trials, place, stopping)
        except (TrainingFailed, checkpoints.WritingFailed) as error:
            failures.append(f"{campaign.name}: {error}")
            print(f"error: {failures[-1]}", file=sys.stderr, flush=True)
            continue
        if position:
            stopped = f" with {campaign.name}, {position}"
            break
    total = trials * len(campaigns)
    left = sum(len(open_seeds(campaign, trials, place.ledger)) for campaign in campaigns)
    stands = f"{total - left} of {total} trials are done"
    if not left:
        return Outcome(0, stands)
    if stopping():
        signal = stopping.signal
        why = f"stopped by {signal.name}" if signal else "the time limit is reached"
        return Outcome(
            stopping.exit_status or BUDGET_SPENT,
            f"{stands}; {why}; rerun the command to resume{stopped}",
        )
    if not failures:
        return Outcome(1, f"{stands}; the others ended without a test error in {place.workdir}")
    return Outcome(1, f"{stands}; failed: {'; '.join(failures)}")


def open_seeds(campaign: Campaign, trials: int, ledger: Ledger) -> list[int]:
    """The seeds below ``trials`` that are not in the ledger."""
    done = {identity(line) for line in ledger.lines()}
    return [seed for seed in range(trials) if identity(campaign.trial(seed)) not in done]


def check(campaign: Campaign, seeds: Sequence[int], place: Place) -> None:
    """Raises UserError early, for an invalid option or a workdir with another config."""
    setup.make_model(campaign.config, campaign.row.num_classes)
    for seed in seeds:
        checkpoints.check_workdir(place.trial(campaign, seed), campaign.of_seed(seed))


def run(
    campaign: Campaign, trials: int, place: Place, should_stop: Callable[[], bool]
) -> Position | None:
    """Trains the unfinished trials of a campaign and adds each to the ledger.

    Args:
      campaign: the campaign.
      trials: number of trials.
      place: the output locations.
      should_stop: whether to stop.

    Returns:
      The progress of the trial that was stopped; None if all trials are finished.

    Raises:
      TrainingFailed: a loss is not finite; trials that finished before are in the ledger.
      UserError: another process trains the campaign.
    """
    with checkpoints.claimed(place.folder(campaign)):
        # The process may have been killed between the end of a trial and its entry.
        enter(campaign, open_seeds(campaign, trials, place.ledger), place)
        for seeds in _neighbours(open_seeds(campaign, trials, place.ledger)):
            print(f"\n== {campaign.name}, seeds {_listed(seeds)}", flush=True)
            try:
                results = train_seeds(campaign, seeds, place, should_stop)
            finally:
                enter(campaign, seeds, place)
            for seed, result in zip(seeds, results, strict=False):
                if not result.finished:
                    return Position(seed, result.step, result.total)
    return None


def train_seeds(
    campaign: Campaign, seeds: Sequence[int], place: Place, should_stop: Callable[[], bool]
) -> list[Result]:
    """Trains consecutive seeds until they finish or are stopped."""
    config = campaign.of_seed(seeds[0])
    config.trials = len(seeds)
    if campaign.column != tables.IMAGENET and jax.default_backend() != "cpu":
        _evaluate_less_often(config)
    return train_trials(config, place.folder(campaign), should_stop)


def _evaluate_less_often(config: ConfigDict) -> None:
    """Evaluates and saves twenty times per run, at intervals of at least 5 epochs, by default.

    On an accelerator, an epoch of CIFAR takes less than a second, and an evaluation or a checkpoint
    about a twentieth of that.
    """
    whole = parse_duration("train_for", config.train_for)
    if whole.unit != "epochs":
        return
    for key in ("eval_every", "checkpoint_every"):
        if config[key] == EVERY_EPOCH:
            config[key] = f"{max(5, int(whole.number) // 20)} epochs"


def _neighbours(seeds: Sequence[int]) -> list[list[int]]:
    """Groups consecutive seeds: ``[0, 1, 3]`` gives ``[[0, 1], [3]]``."""
    numbered = itertools.groupby(enumerate(seeds), key=lambda pair: pair[1] - pair[0])
    return [[seed for _, seed in group] for _, group in numbered]


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


# Lines of the ledger


def enter(campaign: Campaign, seeds: Sequence[int], place: Place) -> None:
    """Adds the finished trials to the ledger."""
    for seed in seeds:
        workdir = place.trial(campaign, seed)
        if not is_finished(workdir):
            continue
        line = entry(campaign, seed, workdir)
        if place.ledger.append(line):
            error, lowest = line["final_error"], line["best_error"]
            print(
                f"{campaign.name}, seed {seed}: test error {error:.2f} % after the last epoch, "
                f"{lowest:.2f} % after the best; added to {place.ledger.path}",
                flush=True,
            )


def is_finished(workdir: epath.Path) -> bool:
    """Whether the run in a workdir is finished."""
    lines, steps = read_metrics(workdir), checkpoints.steps_in(workdir)
    if not (lines and steps and lines[-1].get("test/error") is not None):
        return False
    config = config_lib.read_config(workdir / checkpoints.CONFIG_FILE)
    step, epoch, latest = lines[-1]["step"], lines[-1]["epoch"], steps[-1]
    total = parse_duration("train_for", config.train_for).steps(round(step / epoch))
    return step == latest == total


def entry(campaign: Campaign, seed: int, workdir: epath.Path) -> Line:
    """The ledger's line of a finished trial; the device is the current one."""
    config = config_lib.read_config(workdir / checkpoints.CONFIG_FILE)
    flat, lines = config_lib.flatten(config), read_metrics(workdir)
    tested = [line for line in lines if line.get("test/error") is not None]
    errors = [line["test/error"] for line in tested]
    mirrored = [
        line["test/flip_error"] for line in lines if line.get("test/flip_error") is not None
    ]
    size = size_of(config)
    row, column = campaign.row, campaign.column
    # Without the keys that do not change results, such as folders.
    recipe = {key: value for key, value in flat.items() if key not in config_lib.FREE_KEYS}
    return {
        **campaign.trial(seed),
        "tables": sorted({other.table for other in paper.rows(model=row.model)}),
        "network": row.network,
        "config": recipe,
        "params": size.params,
        "multiply_adds": size.multiply_adds,
        "epochs": lines[-1]["epoch"],
        "final_error": errors[-1],
        "best_error": min(errors),
        "errors": errors,
        "error_epochs": [line["epoch"] for line in tested],
        "by_column": by_column(lines) if column == tables.IMAGENET else {},
        **({"flip_error": mirrored[-1]} if mirrored else {}),
        "images_per_second": images_per_second(lines, config.batch_size),
        "wall_seconds": lines[-1].get("seconds"),
        "dtype": compute_dtype(config.dtype).name,
        "device": device(),
        "versions": {name: version(name) for name in PACKAGES},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def by_column(lines: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """The errors of Table 4's columns in the lines of a ``metrics.jsonl``."""
    return {
        column: [line[name] for line in lines if line.get(name) is not None]
        for column, name in tables.MEASURES.items()
    }


def size_of(config: ConfigDict) -> Complexity:
    """The complexity of a config's network, for the images and classes of its data set."""
    builder = open_prepared(config.dataset.name, config.dataset.data_dir or None)
    features, crop = builder.info.features, config.dataset.crop
    model = setup.make_model(config, features["label"].num_classes)
    height, width, channels = features["image"].shape
    return complexity(model, (crop or height, crop or width, channels))


def images_per_second(lines: Sequence[dict[str, Any]], batch_size: int) -> float:
    """The throughput of a whole run without evaluation, from the lines of ``metrics.jsonl``."""
    before, images, seconds = 0, 0, 0.0
    for line in lines:
        if line.get("images_per_second"):
            count = (line["step"] - before) * batch_size
            images, seconds = images + count, seconds + count / line["images_per_second"]
        before = line["step"]
    return float(f"{images / seconds:.6g}")


def device() -> str:
    """A description of the devices."""
    kind = jax.devices()[0].device_kind
    if kind == "cpu":
        return f"{os.cpu_count()} CPU cores"
    return f"{jax.device_count()} x {kind}" if jax.device_count() > 1 else kind
