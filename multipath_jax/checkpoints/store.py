"""Checkpoints in a workdir: the two latest and the best, written while training goes on."""

import contextlib
import json
import os
import re
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util
from jaxtyping import PyTree
from orbax.checkpoint import args as ocp_args
from orbax.checkpoint import checkpoint_managers as policies

from multipath_jax.checkpoints.fingerprint import fingerprint
from multipath_jax.errors import Failure, UserError
from multipath_jax.parallel import processes
from multipath_jax.parallel.devices import replicated
from multipath_jax.utils import filesystem, storage

FOLDER = "checkpoints"
DAMAGED = "damaged"
RECORD, RECORD_FILE = "record", "record.json"  # the item of a checkpoint, and its file
CHANGED = "its numbers are not those that were saved"
MARGIN = 1_000_000  # bytes beside the numbers: some dozens of files, and the log
SETTLING = 0.5  # seconds in which a run that deletes a checkpoint is done with it
ATTEMPTS = 10
# What a key means depends on the first two. Arrays may be of other types with the third.
RANDOM = ("jax_default_prng_impl", "jax_threefry_partitionable")
SETTINGS = (*RANDOM, "jax_enable_x64")
GARBLED = (json.JSONDecodeError, UnicodeDecodeError, LookupError)  # of Orbax's own small files
# TensorStore's words for bytes that are not those which were written.
BROKEN = re.compile(r"(DATA_LOSS|NOT_FOUND|OUT_OF_RANGE|FAILED_PRECONDITION|INVALID_ARGUMENT): ")

T = TypeVar("T")


class Unreadable(UserError):
    """A checkpoint that cannot be read here and now; nothing says that it is not whole."""

    VERDICT = "cannot be read"

    def __init__(self, step: int, reason: str):
        first = (reason.strip().splitlines() or ["no reason is given"])[0]
        super().__init__(f"the checkpoint of step {step} {self.VERDICT} ({first[:300]})")


class Damaged(Unreadable):
    """A checkpoint that is not what was saved."""

    VERDICT = "is damaged"


class WritingFailed(Failure):
    """A checkpoint could not be written, for want of room or rights; those before it are whole."""


@runtime_checkable
class Saved(Protocol):
    """What is kept of a run, whatever it is made of; a tree of arrays."""

    def items(self) -> dict[str, PyTree]:
        """Its two parts, ``weights`` and ``training``, as trees of arrays."""

    def with_items(self, items: dict[str, PyTree]) -> Any:
        """The same with other arrays."""


S = TypeVar("S", bound=Saved)


class Checkpoints:
    """The checkpoints of one workdir.

    Each has three items. Evaluation and `init_from` need the first alone: ``weights`` (parameters
    and statistics, or their average if one is kept), ``training`` (step, momentum, key, the metrics
    since the last log, and what the average is of), and ``record``: the test error, the numbers of
    all arrays by which damage is seen (`fingerprint`), and the settings of JAX. A checkpoint is
    written beside its place and renamed when complete: a run that is killed leaves either the whole
    of it or nothing. Those in a bucket are copied from and to a folder of this machine
    (`storage.Copied`).
    """

    def __init__(self, workdir: epath.PathLike, read_only: bool = False):
        """Opens the folder; creates it unless ``read_only``. Raises OSError."""
        self._failed = self._proven = False
        self._workdir = filesystem.path("workdir", workdir)
        first = processes.is_first()
        self._copy = storage.working_copy(self._workdir / FOLDER, first, read_only)
        self._folder = self._copy.folder  # where Orbax works
        # Processes that do not share that folder read each for itself, and the first alone writes.
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
        self._newest = self.latest  # the same for all processes, whichever of them saves
        self._uploading = futures.ThreadPoolExecutor(1)
        self._uploaded: futures.Future | None = None
        self._errors: dict[int, float | None] = {}  # in percent; None where it was not measured
        for step in self.steps:
            with contextlib.suppress(Unreadable):
                self._errors[step] = self._record(step)["error"]

    @property
    def _place(self) -> epath.Path:
        """What to say of where they are."""
        return self._workdir / FOLDER

    @property
    def steps(self) -> list[int]:
        """Those of all checkpoints, in order."""
        return sorted(self._manager.all_steps())

    @property
    def latest(self) -> int | None:
        """The step of the newest checkpoint."""
        return self._manager.latest_step()

    @property
    def best(self) -> int | None:
        """The step of the checkpoint with the lowest test error; the latest of equals."""
        best = self.best_of(self.steps)
        return self.latest if best is None else best

    @property
    def best_error(self) -> float | None:
        """The lowest test error, in percent."""
        best = self.best_of(self.steps)
        return None if best is None else self._errors[best]

    def best_of(self, steps: Sequence[int]) -> int | None:
        """The best of some checkpoints; None if the test error of none of them is known."""
        known = {step: self._errors[step] for step in steps if self._errors.get(step) is not None}
        return min(known, key=lambda step: (known[step], -step), default=None)

    def kept(self, steps: Sequence[int]) -> set[int]:
        """Which of the checkpoints are to stay: the best, and two of the latest, should the newest
        be damaged; also those whose records cannot be read, of which nobody knows."""
        unknown = set(steps) - self._errors.keys()
        return {*steps[-2:], self.best_of(steps), *unknown} - {None}

    def save(self, step: int, carry: Saved, error: float | None) -> None:
        """Copies the carry off the device and returns; the files are written meanwhile.

        The first of this process is waited for, and looked for where it should lie.

        Args:
          error: the test error, in percent, where it is known.

        Raises:
          WritingFailed: this one or the one before could not be written.
        """
        if step == self._newest:
            return
        self._newest = step
        self.wait()
        items = carry.items()
        settings = {name: getattr(jax.config, name) for name in SETTINGS}
        record = {"error": error, "fingerprint": _numbers(items), "settings": settings}
        items = items if self._copy.shared else _whole_arrays(items)
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
        if not self._proven:
            self.wait()
            self._prove(step)

    def _finish(self) -> None:
        """In a thread of its own: until all is written, and where it belongs."""
        self._manager.wait_until_finished()
        self._copy.publish()

    def _prove(self, step: int) -> None:
        """That what was written can be found again: not so on every file system."""
        try:
            if processes.is_first():
                self._saved(step)
        except Unreadable as error:
            self._failed = True
            raise WritingFailed(f"{error}, though it was just written to {self._place}") from error
        self._proven = True

    def restore(self, like: S, step: int) -> S:
        """The carry saved at that step; ``like`` gives its shapes and where it lies.

        Raises:
          Damaged: it is not what was saved.
          Unreadable: it cannot be read, for want of rights or memory.
          UserError: it is of another network, optimizer, or kind of random numbers.
        """
        items = like.items()
        self._check_fit(_flat(items), step, RANDOM)
        args = {name: _restore_args(item) for name, item in items.items()}
        with self._reading(step, *GARBLED):
            found = self._manager.restore(step, args=ocp_args.Composite(**args))
            carry = like.with_items({name: found[name] for name in args})
            self._check_numbers(carry.items(), step)
        return carry

    def restore_newest(self, like: S) -> tuple[S | None, list[str]]:
        """The newest carry that is whole, and what to say of it; None if there is no checkpoint.

        Those after it, which are damaged, are moved to the workdir's folder ``damaged``.

        Raises:
          UserError: there are checkpoints, but none is whole, or one cannot be read for another
            reason than damage; nothing is changed.
        """
        damages: dict[int, Damaged] = {}
        for step in reversed(self.steps):
            try:
                carry = self.restore(like, step)
            except Damaged as damage:
                damages[step] = damage
                continue
            said = [f"{damage}; going back to the one before" for damage in damages.values()]
            if damages:
                said.append(f"what is damaged is now in {self._put_aside(damages)}")
            return carry, [*said, f"resuming at step {step} of {self._workdir}"]
        workdir = self._workdir
        if damages:
            raise UserError(
                f"{', '.join(map(str, damages.values()))}, and {workdir} has no other; "
                "--restart moves them aside and begins afresh"
            )
        if storage.names(workdir / DAMAGED):
            raise UserError(
                f"{workdir} has damaged checkpoints, in {workdir / DAMAGED}, and no others; "
                "--restart moves them aside and begins afresh"
            )
        return None, []

    def _put_aside(self, steps: Mapping[int, Damaged]) -> epath.Path:
        aside = self._workdir / DAMAGED
        if processes.is_first():
            storage.make(aside)
        for step in steps:
            self._copy.put_aside(step, unused(aside / str(step)))
        processes.wait_for_all("put aside")
        self._manager.reload()
        self._newest = self.latest
        return aside

    def find(self, which: str | int) -> int:
        """The step of the ``"best"`` or of the ``"latest"`` checkpoint, or the one that is given.

        Raises:
          UserError: there is none; those that there are are named.
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
        """The shapes of the saved weights, by flattened key. Raises Unreadable."""
        return traverse_util.flatten_dict(self._saved(step)["weights"])

    def restore_weights(self, like: PyTree, step: int) -> PyTree:
        """The saved values of ``like``, the shapes of the weights or of a part of them.

        Raises:
          Damaged: they are not what was saved.
          Unreadable: they cannot be read, for want of rights or memory.
          UserError: they are of other shapes or types.
        """
        self._check_fit(_flat({"weights": like}), step)
        args = ocp_args.Composite(weights=_restore_args(like, partial_restore=True))
        with self._reading(step, *GARBLED):
            found = {"weights": self._manager.restore(step, args=args)["weights"]}
            self._check_numbers(found, step)
        return found["weights"]

    def _check_numbers(self, items: dict[str, PyTree], step: int) -> None:
        """Raises Damaged."""
        expected = self._record(step)["fingerprint"]
        if any(expected[name] != number for name, number in _numbers(items).items()):
            raise Damaged(step, CHANGED)

    def _check_fit(self, wanted: dict[str, Any], step: int, settings: Sequence[str] = ()) -> None:
        """Before anything is read: what does not fit would be cast, or end in some other error.

        Args:
          wanted: shapes by name; of a whole carry, or of a part of the weights.
          settings: those of JAX that have to be the same.

        Raises:
          UserError: something differs; nothing is changed.
        """
        found = _flat(self._saved(step))
        if not settings:
            found = {name: leaf for name, leaf in found.items() if name in wanted}
        kinds = [{name: _kind(leaf) for name, leaf in tree.items()} for tree in (found, wanted)]
        differing = _differences(*kinds)
        stored = self._record(step)["settings"]
        own = {name: getattr(jax.config, name) for name in SETTINGS}
        others = _differences(stored, own)
        if differing or any(name in settings for name in others):
            arrays = sorted(differing.values(), key=lambda line: not line.startswith("weights"))
            lines = [*others.values(), *arrays]
            more = f", and {len(lines) - 3} more differ" if len(lines) > 3 else ""
            raise UserError(
                f"the checkpoint of step {step} in {self._place} does not fit this run: "
                f"{', '.join(lines[:3])}{more}; go on with the settings and the version of this "
                "program that wrote it, or use another workdir"
            )

    def _saved(self, step: int) -> dict[str, PyTree]:
        """The shapes of all that was saved, as trees of dicts and lists. Raises Unreadable."""
        with self._reading(step):
            self._copy.fetch(step)
        self._check_access(step)
        names = self._record(step)["fingerprint"].keys()
        # Small text files, whose readers stumble in many ways over what was not written so.
        with self._reading(step, ValueError, LookupError, TypeError, AttributeError):
            metadata = self._manager.item_metadata(step)
            found = {name: dict(metadata[name].tree) for name in ("weights", "training")}
            if _flat(found).keys() != names:
                raise Damaged(step, "its arrays are not those that were saved")
            return found

    def _record(self, step: int) -> dict[str, Any]:
        """Raises Unreadable."""
        folder = self._folder / str(step) / RECORD
        if (self._folder / str(step)).exists() and not folder.exists():
            raise Unreadable(step, f"it has no {RECORD}: another version of this program wrote it")
        with self._reading(step, FileNotFoundError, ValueError, LookupError, TypeError):
            found = json.loads((folder / RECORD_FILE).read_bytes())
            if _crc32(found["record"]) != found["crc32"]:
                raise Damaged(step, f"its {RECORD} is not what was saved")
            return found["record"]

    def _check_access(self, step: int) -> None:
        """Raises Unreadable if a file may not be read, of which Orbax says that it is not there."""
        folder = os.fspath(self._folder / str(step))
        with self._reading(step, FileNotFoundError):
            for path, _, files in os.walk(folder, onerror=_raise):
                for name in files:
                    with open(os.path.join(path, name), "rb"):
                        pass

    @contextlib.contextmanager
    def _reading(self, step: int, *broken: type[Exception]) -> Iterator[None]:
        """Around what reads a checkpoint: tells what is damaged from what cannot be read.

        Args:
          broken: the errors of damage, beside those that say so themselves.
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
        """Returns when all is written. Raises WritingFailed."""
        with self._failing():
            if self._uploaded:
                self._uploaded.result()

    def close(self) -> None:
        """Waits until all is written. Raises WritingFailed, unless something did before."""
        try:
            if not self._failed:
                self.wait()
                self._manager.close()
        finally:
            self._uploading.shutdown()
            self._copy.close()

    def _check_room(self, carry: Saved) -> None:
        """Before it is begun: what runs out of room in the middle ends in noise."""
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(carry)) + MARGIN
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            raise OSError(f"No space left on device: {needed:,} bytes wanted, {free:,} free")

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """Orbax writes in other threads, and tells of what went wrong at the next occasion."""
        try:
            yield
        except Failure:
            self._failed = True
            raise
        except Exception as error:  # of many types, with the reason somewhere in the text
            self._failed = True
            reason = re.search(r"(No space left on device|Permission denied)[^\[\n]*", str(error))
            reason = reason[0] if reason else (str(error).splitlines() or [""])[0][:300]
            raise WritingFailed(
                f"a checkpoint could not be written to {self._place} ({reason}); those before it "
                "are whole, and the same command goes on from them"
            ) from error


class _Preserved(policies.PreservationPolicy):
    """Orbax deletes the checkpoints that are not `Checkpoints.kept`."""

    def __init__(self, checkpoints: Checkpoints):
        self._checkpoints = checkpoints

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        steps = [info.step for info in checkpoints]
        kept = self._checkpoints.kept(steps)
        return [step in kept for step in steps]


def _alone() -> ocp.options.MultiprocessingOptions:
    """This process reads or writes by itself, and waits for no other."""
    if jax.process_count() == 1:
        return ocp.options.MultiprocessingOptions()
    own = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process_{own}"
    )


def _whole_arrays(items: dict[str, PyTree]) -> dict[str, PyTree]:
    """All of every array on this process, which may have but a part of it."""
    if jax.process_count() == 1:
        return items
    mesh = jax.tree.leaves(items)[0].sharding.mesh
    found = jax.jit(lambda tree: tree, out_shardings=replicated(mesh))(items)
    return jax.tree.map(lambda leaf: np.asarray(leaf.addressable_data(0)), found)


def _flat(tree: PyTree) -> dict[str, Any]:
    """The leaves by name, by the same for a tree, for its shapes and for what Orbax says of it."""
    return ocp.tree.to_flat_dict(ocp.tree.serialize_tree(tree, keep_empty_nodes=True), sep="/")


def _numbers(items: dict[str, PyTree]) -> dict[str, int]:
    """The fingerprint of every array, by name."""
    flat = _flat(items)
    return dict(zip(flat, fingerprint(list(flat.values())).tolist(), strict=True))


def _kind(leaf: Any) -> str:
    return f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, str]:
    """What differs, each as ``key is 1 there and 2 here``."""
    return {
        key: f"{key} is {there.get(key, 'missing')} there and {here.get(key, 'missing')} here"
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key)
    }


def _crc32(record: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and what it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__


def _raise(error: OSError) -> None:
    raise error


def _restore_args(like: PyTree, **options) -> ocp_args.PyTreeRestore:
    """How to read a tree of these shapes to where they say."""
    where = ocp.checkpoint_utils.construct_restore_args(like)
    return ocp_args.PyTreeRestore(item=like, restore_args=where, **options)


def steps_in(workdir: epath.PathLike) -> list[int]:
    """The steps of a workdir's checkpoints, whatever may be wrong with them."""
    return storage.steps(epath.Path(workdir) / FOLDER)


def unused(path: epath.Path) -> epath.Path:
    """The path, or with ``_2``, ``_3`` and so on at its end the first that is not there."""
    number, free = 1, path
    while storage.exists(free):
        number += 1
        free = path.with_name(f"{path.name}_{number}")
    return free


def open_existing(workdir: epath.PathLike) -> Checkpoints:
    """The checkpoints of a run that has some; nothing in it is changed.

    Raises:
      UserError: there are none, or the folder cannot be read.
    """
    workdir = epath.Path(workdir)
    try:
        for _ in range(ATTEMPTS):
            with contextlib.suppress(FileNotFoundError):  # deleted while the folder was looked at
                if not steps_in(workdir):
                    break
                return Checkpoints(workdir, read_only=True)
        trials = [name for name in storage.names(workdir) if steps_in(workdir / name)]
    except OSError as error:
        raise UserError(f"{workdir} cannot be read ({filesystem.reason(error)})") from error
    hint = f"; its trials do: {', '.join(trials)}" if trials else ""
    raise UserError(f"{workdir} has no checkpoint{hint}")


def read_existing(
    workdir: epath.PathLike, which: str | int, read: Callable[[Checkpoints, int], T]
) -> tuple[int, T]:
    """The step of a checkpoint and what ``read(checkpoints, step)`` gives of it.

    The run may go on meanwhile, and delete what is being read: then it is the best or latest of
    what there is by then.

    Args:
      which: as for `Checkpoints.find`.

    Raises:
      UserError: there is no such checkpoint, or it is damaged or cannot be read.
    """
    for _ in range(ATTEMPTS):
        before = steps_in(workdir)
        with contextlib.closing(open_existing(workdir)) as found:
            step = found.find(which)
            try:
                return step, read(found, step)
            except Unreadable:
                time.sleep(SETTLING)
                if steps_in(workdir) == before:
                    raise
    raise UserError(
        f"the checkpoints of {workdir} are replaced faster than they can be read; try again when "
        "the run that writes them has ended"
    )
