"""Checkpoints of a workdir: the two latest and the best one, written asynchronously."""

import contextlib
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util
from jaxtyping import PyTree
from orbax.checkpoint import args as ocp_args
from orbax.checkpoint import checkpoint_managers as policies

from multipath_jax.checkpoints.arrays import (
    by_name,
    checksums,
    differences,
    gather,
    restore_args,
    types_and_shapes,
)
from multipath_jax.checkpoints.errors import Damaged, Unreadable, WritingFailed
from multipath_jax.checkpoints.working_copy import working_copy
from multipath_jax.errors import Failure, UserError
from multipath_jax.parallel import processes
from multipath_jax.utils import filesystem, storage

FOLDER = "checkpoints"
DAMAGED = "damaged"
RECORD, RECORD_FILE = "record", "record.json"  # the item of a checkpoint, and its file
CHANGED = "its arrays are not those that were saved"
MARGIN = 1_000_000  # bytes of disk space in addition to the arrays: metadata files and the log
# JAX settings stored with a checkpoint: the first two change random numbers, the third types.
RANDOM = ("jax_default_prng_impl", "jax_threefry_partitionable")
SETTINGS = (*RANDOM, "jax_enable_x64")
GARBLED = (json.JSONDecodeError, UnicodeDecodeError, LookupError)  # damaged metadata files of Orbax
# TensorStore's errors for damaged files.
BROKEN = re.compile(r"(DATA_LOSS|NOT_FOUND|OUT_OF_RANGE|FAILED_PRECONDITION|INVALID_ARGUMENT): ")


@runtime_checkable
class Saved(Protocol):
    """The state of a run that is saved in a checkpoint; a tree of arrays."""

    def items(self) -> dict[str, PyTree]:
        """The items of the checkpoint, ``weights`` and ``training``, as trees of arrays."""

    def with_items(self, items: dict[str, PyTree]) -> Any:
        """A copy with the arrays of ``items``."""


S = TypeVar("S", bound=Saved)


class Checkpoints:
    """The checkpoints of one workdir.

    Each has three items: ``weights`` (parameters and other collections, or their average, if one is
    kept), the only item that evaluation and `init_from` read; ``training`` (step, optimizer state,
    random key, the metrics since the last log, and the averaged variables); and ``record`` (the
    test error, the checksums of all arrays by `fingerprint`, and settings of JAX). A checkpoint is
    written to a temporary folder and renamed when it is complete, so a run that is killed leaves no
    partial checkpoint. Checkpoints in a bucket are copied to and from a local folder
    (`working_copy.Copied`).
    """

    def __init__(self, workdir: epath.PathLike, read_only: bool = False):
        """Opens the folder of checkpoints.

        Args:
          workdir: the workdir of the run.
          read_only: whether to change nothing; otherwise the folder is created if necessary.

        Raises:
          OSError: the folder cannot be read or created.
        """
        self._failed = self._verified = False
        self._workdir = filesystem.path("workdir", workdir)
        first = processes.is_first()
        self._copy = working_copy(self._workdir / FOLDER, first, read_only)
        self._folder = self._copy.folder  # where Orbax works
        # If processes do not share the folder, each reads by itself and only process 0 writes.
        self._saves = self._copy.shared or first
        together = ocp.options.MultiprocessingOptions() if self._copy.shared else _alone()
        if not read_only:
            processes.wait_for_all("made the folder of the checkpoints")
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_Preserved(self),
            create=False,
            read_only=read_only or not self._saves,
            cleanup_tmp_directories=not read_only and self._saves,
            multiprocessing_options=together,
        )
        handlers = {
            name: ocp.PyTreeCheckpointHandler(multiprocessing_options=together)
            for name in ("weights", "training")
        }
        handlers[RECORD] = ocp.JsonCheckpointHandler(
            filename=RECORD_FILE, multiprocessing_options=together
        )
        self._manager = ocp.CheckpointManager(self._folder, options=options, item_handlers=handlers)
        self._newest = self.latest  # the same in all processes, including those that do not save
        self._uploading = futures.ThreadPoolExecutor(1)
        self._uploaded: futures.Future | None = None
        self._errors: dict[int, float | None] = {}  # test error in percent by step; None: unknown
        for step in self.steps:
            with contextlib.suppress(Unreadable):
                self._errors[step] = self._record(step)["error"]

    @property
    def _place(self) -> epath.Path:
        """The folder of the checkpoints, for messages."""
        return self._workdir / FOLDER

    @property
    def steps(self) -> list[int]:
        """The steps of all checkpoints, increasing."""
        return sorted(self._manager.all_steps())

    @property
    def latest(self) -> int | None:
        """The step of the newest checkpoint; None if there is none."""
        return self._manager.latest_step()

    @property
    def best(self) -> int | None:
        """The step of the checkpoint with the lowest test error; the latest one of equals."""
        best = self.best_of(self.steps)
        return self.latest if best is None else best

    @property
    def best_error(self) -> float | None:
        """The lowest test error in percent; None if it is unknown."""
        best = self.best_of(self.steps)
        return None if best is None else self._errors[best]

    def best_of(self, steps: Sequence[int]) -> int | None:
        """The best of some checkpoints; None if none of their test errors is known."""
        known = {step: self._errors[step] for step in steps if self._errors.get(step) is not None}
        return min(known, key=lambda step: (known[step], -step), default=None)

    def kept(self, steps: Sequence[int]) -> set[int]:
        """The checkpoints to keep: the best one, the two latest (in case the newest is damaged),
        and those whose records cannot be read."""
        unknown = set(steps) - self._errors.keys()
        return {*steps[-2:], self.best_of(steps), *unknown} - {None}

    def save(self, step: int, carry: Saved, error: float | None) -> None:
        """Saves a checkpoint: copies the carry to the host and writes the files asynchronously.

        The first checkpoint of this process is written synchronously and verified.

        Args:
          step: the step of the carry; if it has a checkpoint already, nothing is done.
          carry: the state to save.
          error: the test error in percent; None if unknown.

        Raises:
          WritingFailed: this or the previous checkpoint could not be written.
        """
        if step == self._newest:
            return
        self._newest = step
        self.wait()
        items = carry.items()
        settings = {name: getattr(jax.config, name) for name in SETTINGS}
        record = {"error": error, "fingerprint": checksums(items), "settings": settings}
        items = items if self._copy.shared else gather(items)
        args = ocp_args.Composite(
            **{name: ocp_args.PyTreeSave(item) for name, item in items.items()},
            **{RECORD: ocp_args.JsonSave({"record": record, "crc32": _crc32(record)})},
        )
        self._errors[step] = error
        if not self._saves:
            return
        with self._failing():
            self._check_room(carry)
            self._manager.save(step, args=args, force=True)
        self._uploaded = self._uploading.submit(self._finish)
        if not self._verified:
            self.wait()
            self._verify(step)

    def _finish(self) -> None:
        """Waits until all files are written, and uploads them; runs in a background thread."""
        self._manager.wait_until_finished()
        self._copy.publish()

    def _verify(self, step: int) -> None:
        """Raises WritingFailed unless the checkpoint can be read; some file systems lose files."""
        try:
            if processes.is_first():
                self._saved(step)
        except Unreadable as error:
            self._failed = True
            raise WritingFailed(f"{error}, though it was just written to {self._place}") from error
        self._verified = True

    def restore(self, like: S, step: int) -> S:
        """Restores the carry of a checkpoint.

        Args:
          like: a carry of `jax.ShapeDtypeStruct`s with shardings.
          step: the step of the checkpoint.

        Returns:
          The saved carry, with the shardings of ``like``.

        Raises:
          Damaged: the content is not what was saved.
          Unreadable: the files cannot be read, for lack of permissions or memory.
          UserError: it has another network, optimizer, or random number implementation.
        """
        items = like.items()
        self._check_fit(by_name(items), step, RANDOM)
        args = {name: restore_args(item) for name, item in items.items()}
        with self._reading(step, *GARBLED):
            found = self._manager.restore(step, args=ocp_args.Composite(**args))
            carry = like.with_items({name: found[name] for name in args})
            self._check_numbers(carry.items(), step)
        return carry

    def restore_newest(self, like: S) -> tuple[S | None, list[str]]:
        """Restores the newest checkpoint that is not damaged.

        Damaged checkpoints after it are moved to the workdir's folder ``damaged``.

        Args:
          like: as in `restore`.

        Returns:
          The carry, or None if there is no checkpoint; and lines to print.

        Raises:
          UserError: all checkpoints are damaged, or one cannot be read for another reason; nothing
            is changed.
        """
        damages: dict[int, Damaged] = {}
        for step in reversed(self.steps):
            try:
                carry = self.restore(like, step)
            except Damaged as damage:
                damages[step] = damage
                continue
            messages = [
                f"{damage}; falling back to the previous one" for damage in damages.values()
            ]
            if damages:
                messages.append(f"damaged checkpoints are now in {self._put_aside(damages)}")
            return carry, [*messages, f"resuming at step {step} of {self._workdir}"]
        workdir = self._workdir
        if damages:
            raise UserError(
                f"{', '.join(map(str, damages.values()))}, and {workdir} has no other; "
                "--restart moves them aside and starts from scratch"
            )
        if storage.names(workdir / DAMAGED):
            raise UserError(
                f"{workdir} has damaged checkpoints, in {workdir / DAMAGED}, and no others; "
                "--restart moves them aside and starts from scratch"
            )
        return None, []

    def _put_aside(self, steps: Mapping[int, Damaged]) -> epath.Path:
        aside = self._workdir / DAMAGED
        if processes.is_first():
            storage.make(aside)
        for step in steps:
            self._copy.put_aside(step, storage.unused(aside / str(step)))
        processes.wait_for_all("put aside")
        self._manager.reload()
        self._newest = self.latest
        return aside

    def find(self, which: str | int) -> int:
        """The step of a checkpoint.

        Args:
          which: ``"best"``, ``"latest"``, or a step.

        Raises:
          UserError: there is no such checkpoint; the message lists the existing ones.
        """
        if which == "best":
            return self.best
        if which == "latest":
            return self.latest
        steps = {str(step): step for step in self.steps}
        if str(which) not in steps:
            raise UserError(
                f"{self._workdir} has no checkpoint {which!r}; choose best, latest or "
                f"{' or '.join(steps)}"
            )
        return steps[str(which)]

    def shapes(self, step: int) -> dict[tuple[str, ...], PyTree]:
        """The shapes and types of the saved weights, by flattened key. Raises Unreadable."""
        return traverse_util.flatten_dict(self._saved(step)["weights"])

    def restore_weights(self, like: PyTree, step: int) -> PyTree:
        """Restores the weights of a checkpoint, or some of them.

        Args:
          like: a tree of `jax.ShapeDtypeStruct`s, of all weights or of some.
          step: the step of the checkpoint.

        Raises:
          Damaged: the content is not what was saved.
          Unreadable: the files cannot be read, for lack of permissions or memory.
          UserError: the saved arrays have other shapes or types.
        """
        self._check_fit(by_name({"weights": like}), step)
        args = ocp_args.Composite(weights=restore_args(like, partial_restore=True))
        with self._reading(step, *GARBLED):
            found = {"weights": self._manager.restore(step, args=args)["weights"]}
            self._check_numbers(found, step)
        return found["weights"]

    def _check_numbers(self, items: dict[str, PyTree], step: int) -> None:
        """Raises Damaged if the checksums of arrays differ from the record."""
        expected = self._record(step)["fingerprint"]
        if any(expected[name] != number for name, number in checksums(items).items()):
            raise Damaged(step, CHANGED)

    def _check_fit(self, wanted: dict[str, Any], step: int, settings: Sequence[str] = ()) -> None:
        """Compares shapes and types before reading: Orbax would cast arrays or raise other errors.

        Args:
          wanted: shapes by name, of a whole carry or of some of the weights.
          step: the step of the checkpoint.
          settings: JAX settings that must be the same; if empty, only ``wanted`` is compared.

        Raises:
          UserError: something differs.
        """
        found = by_name(self._saved(step))
        if not settings:
            found = {name: leaf for name, leaf in found.items() if name in wanted}
        differing = differences(types_and_shapes(found), types_and_shapes(wanted))
        stored = self._record(step)["settings"]
        own = {name: getattr(jax.config, name) for name in SETTINGS}
        others = differences(stored, own)
        if differing or any(name in settings for name in others):
            arrays = sorted(differing.values(), key=lambda line: not line.startswith("weights"))
            lines = [*others.values(), *arrays]
            more = f", and {len(lines) - 3} more differ" if len(lines) > 3 else ""
            raise UserError(
                f"the checkpoint of step {step} in {self._place} does not fit this run: "
                f"{', '.join(lines[:3])}{more}; resume with the settings and the version of this "
                "program that wrote it, or use another workdir"
            )

    def _saved(self, step: int) -> dict[str, PyTree]:
        """The shapes of all saved arrays, as trees of dicts and lists. Raises Unreadable."""
        with self._reading(step):
            self._copy.fetch(step)
        self._check_access(step)
        names = self._record(step)["fingerprint"].keys()
        # Damaged metadata files raise many types of exceptions.
        with self._reading(step, ValueError, LookupError, TypeError, AttributeError):
            metadata = self._manager.item_metadata(step)
            found = {name: dict(metadata[name].tree) for name in ("weights", "training")}
            if by_name(found).keys() != names:
                raise Damaged(step, "its metadata list other arrays than its record")
            return found

    def _record(self, step: int) -> dict[str, Any]:
        """The record of a checkpoint. Raises Unreadable."""
        folder = self._folder / str(step) / RECORD
        if (self._folder / str(step)).exists() and not folder.exists():
            raise Unreadable(step, f"it has no {RECORD}: another version of this program wrote it")
        with self._reading(step, FileNotFoundError, ValueError, LookupError, TypeError):
            found = json.loads((folder / RECORD_FILE).read_bytes())
            if _crc32(found["record"]) != found["crc32"]:
                raise Damaged(step, f"its {RECORD} is not what was saved")
            return found["record"]

    def _check_access(self, step: int) -> None:
        """Raises Unreadable if a file cannot be opened, which Orbax would report as missing."""
        folder = os.fspath(self._folder / str(step))
        with self._reading(step, FileNotFoundError):
            for path, _, files in os.walk(folder, onerror=_raise):
                for name in files:
                    with open(os.path.join(path, name), "rb"):
                        pass

    @contextlib.contextmanager
    def _reading(self, step: int, *broken: type[Exception]) -> Iterator[None]:
        """Context manager: converts exceptions of reading to Damaged or Unreadable.

        Args:
          step: the step of the checkpoint.
          *broken: exceptions that mean damage, in addition to TensorStore's errors.
        """
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            reasons = list(_causes(error))
            kind = Unreadable
            if isinstance(error, broken) or any(BROKEN.match(str(cause)) for cause in reasons):
                kind = Damaged
            raise kind(step, f"{type(reasons[-1]).__name__}: {reasons[-1]}") from error

    def wait(self) -> None:
        """Waits until all checkpoints are written. Raises WritingFailed."""
        with self._failing():
            if self._uploaded:
                self._uploaded.result()

    def close(self) -> None:
        """Waits and closes. Raises WritingFailed, unless an earlier call has raised it."""
        try:
            if not self._failed:
                self.wait()
                self._manager.close()
        finally:
            self._uploading.shutdown()
            self._copy.close()

    def _check_room(self, carry: Saved) -> None:
        """Checks the free disk space before saving; raises OSError if it is too small."""
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(carry)) + MARGIN
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            raise OSError(f"No space left on device: {needed:,} bytes needed, {free:,} free")

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """Context manager: converts exceptions of writing, also from Orbax's earlier background
        writes, to WritingFailed."""
        try:
            yield
        except Failure:
            self._failed = True
            raise
        except Exception as error:  # many types of exceptions, with the reason in the message
            self._failed = True
            reason = re.search(r"(No space left on device|Permission denied)[^\[\n]*", str(error))
            reason = reason[0] if reason else (str(error).splitlines() or [""])[0][:300]
            raise WritingFailed(
                f"a checkpoint could not be written to {self._place} ({reason}); earlier ones are "
                "intact: rerun the command to resume"
            ) from error


class _Preserved(policies.PreservationPolicy):
    """Orbax policy that deletes the checkpoints that are not in `Checkpoints.kept`."""

    def __init__(self, checkpoints: Checkpoints):
        self._checkpoints = checkpoints

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        steps = [info.step for info in checkpoints]
        kept = self._checkpoints.kept(steps)
        return [step in kept for step in steps]


def _alone() -> ocp.options.MultiprocessingOptions:
    """Orbax options for a process that reads or writes without waiting for the others."""
    if jax.process_count() == 1:
        return ocp.options.MultiprocessingOptions()
    own = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process_{own}"
    )


def _crc32(record: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an exception and the chain of its causes."""
    while error is not None:
        yield error
        error = error.__cause__


def _raise(error: OSError) -> None:
    raise error
