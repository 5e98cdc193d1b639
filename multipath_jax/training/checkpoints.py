"""Checkpoints in a workdir: the two latest and the best, written while training goes on."""

import contextlib
import fcntl
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from typing import NamedTuple, TextIO

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict
from orbax.checkpoint import args as ocp_args
from orbax.checkpoint import checkpoint_managers as policies

from multipath_jax.data.description import Description, differences, read_description, to_json
from multipath_jax.errors import UserError
from multipath_jax.training import config as config_lib
from multipath_jax.training import processes
from multipath_jax.training.fingerprint import fingerprint
from multipath_jax.training.state import TrainState
from multipath_jax.training.step import Carry

CONFIG_FILE = "config.json"
DATASET_FILE = "dataset.json"
LOCK_FILE = ".lock"
FOLDER = "checkpoints"
DAMAGED = "damaged"
FINGERPRINT = "fingerprint"
CHANGED = "its numbers are not those that were saved"
MARGIN = 1_000_000  # bytes beside the numbers: some dozens of files, and the log


class Damaged(UserError):
    """A checkpoint that cannot be read, or is not what was saved."""

    def __init__(self, step: int, reason: str):
        first = (reason.strip().splitlines() or ["unreadable"])[0]
        super().__init__(f"the checkpoint of step {step} is damaged ({first[:200]})")


class WritingFailed(RuntimeError):
    """A checkpoint could not be written, for want of room or rights; those before it are whole."""


class Checkpoints:
    """The checkpoints of one workdir.

    Each has two items, so that evaluation and `init_from` need no optimizer: ``weights``
    (parameters and statistics, or their average if one is kept) and ``training`` (step, momentum,
    key, the metrics since the last log, and what the average is of). It is written beside its place
    and renamed when complete: a run that is killed leaves either the whole of it or nothing.
    """

    def __init__(self, workdir: epath.PathLike, read_only: bool = False):
        """Opens the folder; creates it unless ``read_only``."""
        # Two of the latest: one is left should the newest be damaged.
        kept = policies.AnyPreservationPolicy(
            [
                policies.LatestN(2),
                policies.BestN(
                    get_metric_fn=lambda metrics: -metrics["error"],
                    n=1,
                    keep_checkpoints_without_metrics=False,
                ),
            ]
        )
        self._failed = False
        self._folder = epath.Path(workdir).absolute() / FOLDER
        options = ocp.CheckpointManagerOptions(
            preservation_policy=kept,
            best_fn=lambda metrics: metrics["error"],  # without one Orbax stores no metrics
            best_mode="min",
            create=not read_only,
            read_only=read_only,
            cleanup_tmp_directories=not read_only,
        )
        handlers = {name: ocp.PyTreeCheckpointHandler() for name in ("weights", "training")}
        _check_metrics(self._folder)
        self._manager = ocp.CheckpointManager(self._folder, options=options, item_handlers=handlers)

    @property
    def latest(self) -> int | None:
        """The step of the newest checkpoint."""
        return self._manager.latest_step()

    @property
    def best(self) -> int | None:
        """The step of the checkpoint with the lowest test error; the latest of equals."""
        errors = self._errors()
        return min(errors, key=lambda step: (errors[step], -step)) if errors else self.latest

    @property
    def best_error(self) -> float | None:
        """The lowest test error, in percent."""
        return min(self._errors().values(), default=None)

    def _errors(self) -> dict[int, float]:
        errors = {}
        for step in self._manager.all_steps():
            with _damaged(step):
                if found := self._manager.metrics(step):
                    errors[step] = found["error"]
        return errors

    def save(self, step: int, carry: Carry, error: float | None) -> None:
        """Copies the carry off the device and returns; the files are written meanwhile.

        Args:
          error: the test error, in percent, where it is known.
        """
        if step == self.latest:
            return
        weights, training = _parts(carry)
        training["fingerprint"] = fingerprint(carry)
        # Those of the weights also by name, for who reads them alone.
        named = {FINGERPRINT: _numbers(weights, carry, training["fingerprint"])}
        items = ocp_args.Composite(
            weights=ocp_args.PyTreeSave(weights), training=ocp_args.PyTreeSave(training)
        )
        metrics = None if error is None else {"error": error}
        with self._failing():
            self._check_room(carry)
            self._manager.save(step, args=items, metrics=metrics, force=True, custom_metadata=named)

    def restore(self, like: Carry, step: int) -> Carry:
        """The carry saved at that step; ``like`` gives its shapes and where it lies.

        Raises:
          Damaged: it cannot be read, or is not what was saved.
          UserError: it is whole, but of another network.
        """
        self._check_shapes(like.state.variables, step)
        weights, training = _parts(like)
        training["fingerprint"] = jax.ShapeDtypeStruct(
            (len(jax.tree.leaves(like)),), np.uint32, sharding=like.state.step.sharding
        )
        items = ocp_args.Composite(weights=_reading(weights), training=_reading(training))
        with _damaged(step):
            found = self._manager.restore(step, args=items)
        expected = found["training"].pop("fingerprint")
        carry = _whole(like, **found)
        if not np.array_equal(fingerprint(carry), expected):
            raise Damaged(step, CHANGED)
        return carry

    def _check_shapes(self, variables: PyTree, step: int) -> None:
        """The config is the same, or it would not have come so far: the program is another one."""
        found = self.shapes(step)
        own = traverse_util.flatten_dict(variables)
        for key in sorted(own.keys() | found.keys()):
            shapes = [tuple(tree[key].shape) if key in tree else "missing" for tree in (found, own)]
            if shapes[0] != shapes[1]:
                raise UserError(
                    f"the checkpoint of step {step} in {self._folder} is of another network: "
                    f"{'/'.join(key)} is {shapes[0]} there and {shapes[1]} here; go on with the "
                    "version of this program that wrote it, or use another workdir"
                )

    def restore_newest(self, like: Carry) -> tuple[Carry | None, list[str]]:
        """The newest carry that is whole, and what to say of it; None if there is no checkpoint.

        Those that are damaged are moved to the workdir's folder ``damaged``.

        Raises:
          UserError: all are damaged.
        """
        said = []
        while (step := self.latest) is not None:
            try:
                carry = self.restore(like, step)
                return carry, [*said, f"resuming at step {step} of {self._folder.parent}"]
            except Damaged as damage:
                said.append(f"{damage}; going back to the one before")
                self._put_aside(step)
        if said:
            raise UserError(
                f"{said[-1].partition(';')[0]}, and none is left before it; all are in "
                f"{self._folder.parent / DAMAGED}, and the same command would begin afresh"
            )
        if (aside := self._folder.parent / DAMAGED).exists():
            return None, [f"beginning afresh, for all checkpoints were damaged: see {aside}"]
        return None, []

    def _put_aside(self, step: int) -> None:
        if processes.is_first():
            aside = self._folder.parent / DAMAGED
            aside.mkdir(exist_ok=True)
            (self._folder / str(step)).rename(aside / f"{step}_{int(time.time())}")
        processes.wait_for_all("put aside")
        self._manager.reload()

    def find(self, which: str | int) -> int:
        """The step of the ``"best"`` or of the ``"latest"`` checkpoint, or the one that is given.

        Raises:
          UserError: there is none; those that there are are named.
        """
        if which == "best":
            return self.best
        if which == "latest":
            return self.latest
        steps = {str(step): step for step in self._manager.all_steps()}
        if str(which) not in steps:
            raise UserError(
                f"{self._folder.parent} has no checkpoint {which!r}; choose best, latest or "
                f"{' or '.join(steps)}"
            )
        return steps[str(which)]

    def shapes(self, step: int) -> dict[tuple[str, ...], PyTree]:
        """The shapes of the saved weights, by flattened key. Raises Damaged."""
        with _damaged(step):
            saved = self._manager.item_metadata(step)["weights"].tree
            return traverse_util.flatten_dict(dict(saved))

    def restore_weights(self, like: PyTree, step: int) -> PyTree:
        """The saved values of ``like``, the shapes of the weights or of a part of them.

        Raises:
          Damaged: they cannot be read, or are not what was saved.
        """
        items = ocp_args.Composite(weights=_reading(like, partial_restore=True))
        with _damaged(step):
            found = self._manager.restore(step, args=items)["weights"]
            expected = (self._manager.metadata(step).custom_metadata or {}).get(FINGERPRINT, {})
        flat = traverse_util.flatten_dict(found, sep="/")
        for name, number in zip(flat, fingerprint(list(flat.values())).tolist(), strict=True):
            if expected.get(name, number) != number:  # checkpoints of old have no such numbers
                raise Damaged(step, CHANGED)
        return found

    def wait(self) -> None:
        """Returns when all is written. Raises WritingFailed."""
        with self._failing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits until all is written. Raises WritingFailed, unless something did before."""
        if not self._failed:
            self.wait()
            self._manager.close()

    def _check_room(self, carry: Carry) -> None:
        """Before it is begun: what runs out of room in the middle ends in noise."""
        if "://" in os.fspath(self._folder):
            return
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(carry)) + MARGIN
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            raise OSError(f"No space left on device: {needed:,} bytes wanted, {free:,} free")

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """Orbax writes in other threads, and tells of what went wrong at the next occasion."""
        try:
            yield
        except Exception as error:  # of many types, with the reason somewhere in the text
            self._failed = True
            reason = re.search(r"(No space left on device|Permission denied)[^\[\n]*", str(error))
            reason = reason[0] if reason else (str(error).splitlines() or [""])[0][:300]
            raise WritingFailed(
                f"a checkpoint could not be written to {self._folder} ({reason}); those before it "
                "are whole, and the same command goes on from them"
            ) from error


def _check_metrics(folder: epath.Path) -> None:
    """Raises Damaged for a checkpoint without readable metrics, for which Orbax opens none."""
    for path in folder.glob("*/metrics/metrics"):
        checkpoint = path.parent.parent
        if not checkpoint.name.isdecimal():  # one that was never completed
            continue
        try:
            json.loads(path.read_text())
        except (OSError, ValueError) as error:
            reason = f"its metrics cannot be read; move {checkpoint} elsewhere"
            raise Damaged(int(checkpoint.name), reason) from error


def _parts(carry: Carry) -> tuple[dict, dict]:
    """The two items of a checkpoint."""
    state = carry.state
    progress = {"step": state.step, "opt_state": state.opt_state, "rng": state.rng}
    if state.average is not None:
        progress["variables"] = state.variables
    return state.weights, {"state": progress, "metrics": carry.metrics}


def _whole(like: Carry, weights: dict, training: dict) -> Carry:
    """The carry of two items."""
    progress = dict(training["state"])
    average = weights if "variables" in progress else None
    variables = progress.pop("variables", weights)
    state = like.state.replace(**variables, **progress, average=average)
    return Carry(state, training["metrics"])


def _numbers(weights: PyTree, carry: Carry, numbers: Array) -> dict[str, int]:
    """The numbers of the weights, which are some of the carry's own arrays, by flattened key."""
    places = {id(leaf): place for place, leaf in enumerate(jax.tree.leaves(carry))}
    numbers, flat = numbers.tolist(), traverse_util.flatten_dict(weights, sep="/")
    return {name: numbers[places[id(leaf)]] for name, leaf in flat.items()}


@contextlib.contextmanager
def _damaged(step: int) -> Iterator[None]:
    """Around what reads a checkpoint, and may raise whatever a reader of half a file does."""
    try:
        yield
    except Exception as error:
        raise Damaged(step, str(error)) from error


def _reading(like: PyTree, **options) -> ocp_args.PyTreeRestore:
    """How to read a tree of these shapes to where they say."""
    where = ocp.checkpoint_utils.construct_restore_args(like)
    return ocp_args.PyTreeRestore(item=like, restore_args=where, **options)


# The config and the description of the data beside the checkpoints


def check_workdir(workdir: epath.Path, config: ConfigDict) -> None:
    """Refuses the workdir of another run, and leaves it as it is.

    Raises:
      UserError: it holds another recipe or model (the keys that differ are listed), or
        checkpoints without a config, or it is no folder that can be written.
    """
    path = workdir / CONFIG_FILE
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"workdir {workdir} is no folder")
    if not path.exists():
        if (workdir / FOLDER).exists():
            raise UserError(f"workdir {workdir} has checkpoints but no {CONFIG_FILE}; use another")
        return
    differing = config_lib.differences(config_lib.read_config(path), config)
    if differing:
        raise UserError(
            f"workdir {workdir} holds a run of another config ({'; '.join(differing)}); "
            "use another workdir, or the config it was started with"
        )


def check_data(workdir: epath.Path, description: Description) -> list[str]:
    """Refuses the workdir of a run that was trained on other data.

    Returns:
      What to say of the test images, if these alone are other ones.

    Raises:
      UserError: the classes, the training images or their statistics differ (how, is said), or it
        has checkpoints but no readable description of its data.
    """
    path = workdir / DATASET_FILE
    # Asked in this order: the first of several processes may be writing both, one after the other.
    trained = (workdir / FOLDER).exists()
    if not path.exists() and not trained:
        return []
    found = differences(read_description(path), description)
    tested = found.pop("test", None)
    if found:
        raise UserError(
            f"workdir {workdir} holds a run of other data ({'; '.join(found.values())}); "
            "use another workdir, or the data it was trained on"
        )
    return [f"test errors before and after are of different images ({tested})"] if tested else []


@contextlib.contextmanager
def claimed(workdir: epath.Path) -> Iterator[None]:
    """The workdir, made if need be, for this run alone.

    The claim is a lock on the file ``.lock``, which the system drops when its process ends, however
    that may be. Folders in buckets, which know no locks, are not claimed.

    Raises:
      UserError: another run has it, or it cannot be written.
    """
    if not processes.is_first():
        yield
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        local = "://" not in os.fspath(workdir)
        lock = open(workdir / LOCK_FILE, "a+") if local else None  # noqa: SIM115
    except OSError as error:
        raise UserError(f"workdir {workdir} cannot be written ({error.strerror})") from error
    try:
        if lock:
            _lock(lock, workdir)
        yield
    finally:
        if lock:
            lock.close()


def _lock(lock: TextIO, workdir: epath.Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.seek(0)
        owner = lock.read().strip() or "another process"
        raise UserError(
            f"workdir {workdir} is in use by {owner}; end that run first, or use another workdir"
        ) from error
    lock.seek(0)
    lock.truncate()
    lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    lock.flush()


def write_config(workdir: epath.Path, config: ConfigDict) -> None:
    """Stores the config beside the checkpoints, at once or not at all.

    Raises:
      UserError: the folder cannot be written.
    """
    _write(workdir / CONFIG_FILE, config_lib.to_json(config))


def write_description(workdir: epath.Path, description: Description) -> None:
    """Stores beside the checkpoints what a run is trained on, as `write_config` does; once."""
    path = workdir / DATASET_FILE
    if not path.exists():
        _write(path, to_json(description))


def _write(path: epath.Path, text: str) -> None:
    if not processes.is_first():
        return
    try:
        new = path.with_suffix(".new")
        new.write_text(text)
        os.replace(new, path)
    except OSError as error:
        raise UserError(f"workdir {path.parent} cannot be written ({error.strerror})") from error


# Starting from another run's weights


def check_source(workdir: epath.Path, config: ConfigDict) -> None:
    """Raises UserError if a fresh run is to start from weights that are not there."""
    if config.init_from and not (workdir / FOLDER).exists():
        open_existing(config.init_from).close()


class Transfer(NamedTuple):
    """A state that starts from another run's weights, and what could not be taken over."""

    state: TrainState
    missing: list[str]  # in the network, not in the checkpoint (or there of another shape)
    extra: list[str]  # in the checkpoint, not in the network (or there of another shape)


def initialize_from(workdir: epath.PathLike, state: TrainState) -> Transfer:
    """The state with the best weights of another workdir in place of its own, where they fit.

    Raises:
      UserError: the workdir has no checkpoint, or nothing in it fits.
    """
    source = open_existing(workdir)
    own = traverse_util.flatten_dict(state.variables)
    found = source.shapes(source.best)
    fits = {
        key: value
        for key, value in own.items()
        if key in found and tuple(found[key].shape) == value.shape
    }
    if not fits:
        raise UserError(f"init_from={workdir}: nothing in it fits this network")
    tree = jax.tree.map(ocp.utils.to_shape_dtype_struct, traverse_util.unflatten_dict(fits))
    restored = traverse_util.flatten_dict(source.restore_weights(tree, source.best))
    source.close()
    variables = traverse_util.unflatten_dict(own | restored)
    return Transfer(
        state.replace(params=variables["params"], batch_stats=variables.get("batch_stats", {})),
        missing=sorted("/".join(key) for key in own.keys() - fits.keys()),
        extra=sorted("/".join(key) for key in found.keys() - fits.keys()),
    )


def open_existing(workdir: epath.PathLike) -> Checkpoints:
    """The checkpoints of a run that has some; nothing in it is changed.

    Raises:
      UserError: there are none.
    """
    if (epath.Path(workdir) / FOLDER).exists():
        checkpoints = Checkpoints(workdir, read_only=True)
        if checkpoints.latest is not None:
            return checkpoints
    trials = sorted(path.parent.name for path in epath.Path(workdir).glob(f"*/{FOLDER}"))
    hint = f"; its trials do: {', '.join(trials)}" if trials else ""
    raise UserError(f"{workdir} has no checkpoint{hint}")
