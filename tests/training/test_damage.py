"""Detection of damaged checkpoints, and resuming from the previous checkpoint.

Intact checkpoints that cannot be restored for another reason are refused and left unchanged.
"""

import contextlib
import os
import pathlib
import random
import shutil
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from damage import contents, empty, files, flip, remove, truncate
from etils import epath
from workdirs import final, lines

from multipath_jax import checkpoints as ckpt
from multipath_jax import metrics_file
from multipath_jax.checkpoints.fingerprint import fingerprint
from multipath_jax.errors import UserError
from multipath_jax.trainer import Trainer
from multipath_jax.training import loop
from multipath_jax.utils import claims

pytestmark = [
    pytest.mark.usefixtures("collected"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def recipe(data_dir, **changes):
    return tiny.tiny_config(
        data_dir, **{"train_for": "2 epochs", "schedule.boundaries": ""} | changes
    )


@pytest.fixture(scope="module")
def whole(data_dir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    tiny.train(recipe(data_dir), workdir)
    return final(workdir, tiny.setup_of(recipe(data_dir)))


@pytest.fixture(scope="module")
def half(data_dir, tmp_path_factory):
    """The workdir of a run that stopped at step 9 of 22, with checkpoints at steps 7 and 9."""
    workdir = tmp_path_factory.mktemp("half")
    calls = iter([False] * 8 + [True])
    tiny.train(recipe(data_dir), workdir, should_stop=lambda: next(calls), steps_per_call=1)
    return workdir


@pytest.fixture
def stopped(half, workdir):
    """The folder of the checkpoints in ``workdir``, a copy of ``half``."""
    shutil.copytree(half, workdir)
    return workdir / ckpt.FOLDER


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        flip,
        pytest.param(empty, marks=pytest.mark.slow),
        pytest.param(remove, marks=pytest.mark.slow),
    ],
)
def test_a_damaged_checkpoint_is_gone_behind(data_dir, workdir, stopped, whole, damage, capsys):
    damage(stopped / "9")
    tiny.train(recipe(data_dir), workdir)
    printed = capsys.readouterr().out
    assert "the checkpoint of step 9 is damaged" in printed
    assert "resuming at step 7 of" in printed
    assert [path.name for path in (workdir / ckpt.DAMAGED).iterdir()] == ["9"]
    jax.tree.map(
        np.testing.assert_array_equal, final(workdir, tiny.setup_of(recipe(data_dir))), whole
    )


def test_a_run_begins_afresh_only_if_it_is_told_to(data_dir, workdir, stopped, whole, capsys):
    for step in ("7", "9"):
        flip(stopped / step)
    before = contents(workdir)
    with pytest.raises(UserError, match=r"step 7 is damaged .*has no other; --restart moves them"):
        tiny.train(recipe(data_dir), workdir)
    assert contents(workdir) == before
    tiny.train(recipe(data_dir), workdir, restart=True)
    assert "starting from scratch; the previous files are now in" in capsys.readouterr().out
    after = contents(workdir)
    lock = workdir / claims.LOCK_FILE
    for path, content in before.items():
        moved = workdir / ckpt.EARLIER / path.relative_to(workdir)
        assert path == lock or after[moved] == content
    jax.tree.map(
        np.testing.assert_array_equal, final(workdir, tiny.setup_of(recipe(data_dir))), whole
    )
    assert [line["step"] for line in lines(workdir)] == [5, 10, 15, 20, 22]


def test_what_a_restart_moves_aside_is_never_replaced(workdir, stopped):
    def found(folder):  # a dict, because the order of files depends on the file system
        return {path.relative_to(folder): data for path, data in contents(folder).items()}

    before = found(stopped)
    for name in (ckpt.EARLIER, f"{ckpt.EARLIER}_2"):
        (said,) = ckpt.move_aside(workdir, loop.WRITTEN)
        assert said.endswith(str(workdir / name))
        assert {path.name for path in workdir.iterdir()} & {*loop.WRITTEN} == set()
        assert found(workdir / name / ckpt.FOLDER) == before
        shutil.copytree(workdir / name / ckpt.FOLDER, stopped)
    shutil.rmtree(stopped)
    assert ckpt.move_aside(workdir, loop.WRITTEN) == []


def test_a_workdir_whose_checkpoints_are_all_in_damaged_is_refused(data_dir, workdir, stopped):
    stopped.rename(workdir / ckpt.DAMAGED)
    before = contents(workdir)
    with pytest.raises(UserError, match=r"has damaged checkpoints, in .*; --restart moves them"):
        tiny.train(recipe(data_dir), workdir)
    assert contents(workdir) == before


def test_what_a_resumed_run_writes_again_is_kept_aside(data_dir, workdir, stopped, whole):
    log, dropped = workdir / metrics_file.METRICS_FILE, workdir / metrics_file.DROPPED_FILE
    spoilt = [b'{"step": 8, "train/loss": 1.5}', b"<<<<<<< ours", b'{"step": 9, "tr']
    log.write_bytes(log.read_bytes() + b"\n" + b"\n".join(spoilt))
    flip(stopped / "9")
    tiny.train(recipe(data_dir), workdir)
    assert dropped.read_bytes() == b"\n".join(spoilt) + b"\n"
    assert [line["step"] for line in lines(workdir)] == [5, 10, 15, 20, 22]
    jax.tree.map(
        np.testing.assert_array_equal, final(workdir, tiny.setup_of(recipe(data_dir))), whole
    )


def test_a_checkpoint_of_another_network_is_not_called_damaged(data_dir, workdir, stopped):
    before = contents(workdir)
    narrower = Trainer(recipe(data_dir), model=tiny.Tiny(features=4))
    with pytest.raises(UserError, match=r"norm/mean is float32\[8\] there and float32\[4\] here"):
        narrower.fit(workdir)
    assert contents(workdir) == before


@pytest.fixture(scope="module")
def two(data_dir, tmp_path_factory):
    """A workdir with checkpoints at steps 1 and 2, and the setup of its run."""
    found = tiny.setup_of(recipe(data_dir))
    workdir = tmp_path_factory.mktemp("two")
    with contextlib.closing(ckpt.Checkpoints(workdir)) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, found.fresh_carry(step), error=9.0 - step)
    return workdir, found


@pytest.fixture
def copy(two, workdir):
    """A copy of the workdir of ``two``, which tests may change."""
    shutil.copytree(two[0], workdir)
    return workdir


def one(damage):
    """Makes a function that damages one file, from one that damages all files of a folder."""

    def apply(path):
        alone = path.parent / "alone"
        alone.mkdir()
        path.rename(alone / path.name)
        damage(alone)
        for left in alone.iterdir():
            left.rename(path)
        alone.rmdir()

    return apply


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        pytest.param(flip, marks=pytest.mark.slow),
        pytest.param(empty, marks=pytest.mark.slow),
        pytest.param(remove, marks=pytest.mark.slow),
    ],
)
def test_damage_of_any_file_is_seen_as_such_or_does_no_harm(two, tmp_path, damage):
    """Some files are not needed to read the arrays, such as markers of complete folders."""
    workdir, run = two
    carry, seen = run.fresh_carry(2), set()
    for path in files(workdir / ckpt.FOLDER / "2"):
        copy = tmp_path / "copy"
        shutil.copytree(workdir, copy)
        one(damage)(copy / path.relative_to(workdir))
        try:
            found = ckpt.Checkpoints(copy).restore(run.abstract_carry, 2)
            jax.tree.map(np.testing.assert_array_equal, found, carry)
        except ckpt.Damaged:
            seen.add(path.parent.name)
        shutil.rmtree(copy)
    assert seen >= {"weights", "training", "d", ckpt.RECORD}


@contextlib.contextmanager
def setting(name, value):
    """Context manager: changes a setting of JAX."""
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        yield
    finally:
        jax.config.update(name, before)


@contextlib.contextmanager
def raising(monkeypatch, error):
    """Context manager: Orbax raises ``error`` when it reads arrays."""

    def fail(*_, **__):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("orbax.checkpoint.CheckpointManager.restore", fail)
        yield


def wide(carry):
    """The carry with a 64-bit step, which a run with JAX_ENABLE_X64 may have."""
    with jax.enable_x64(True):
        step = jax.ShapeDtypeStruct((), jnp.int64, sharding=carry.state.step.sharding)
        return carry._replace(state=carry.state.replace(step=step))


def assert_refused(workdir, like, reason):
    """Asserts that resuming is refused with ``reason``, not as damage, and changes no files."""
    before = contents(workdir)
    with (
        contextlib.closing(ckpt.Checkpoints(workdir)) as checkpoints,
        pytest.raises(UserError, match=reason) as caught,
    ):
        checkpoints.restore_newest(like)
    assert "damage" not in str(caught.value)
    assert contents(workdir) == before


@pytest.mark.parametrize("name", ["rbg", "unsafe_rbg"])
def test_another_kind_of_random_numbers_is_refused(copy, data_dir, name):
    with setting("jax_default_prng_impl", name):
        like = tiny.make_setup(recipe(data_dir)).abstract_carry
        reason = f"jax_default_prng_impl is threefry2x32 there and {name} here"
        assert_refused(copy, like, rf"{reason}, training/state/rng is uint32\[2\] there and uint32")


def test_other_random_numbers_of_the_same_shape_are_refused(copy, two):
    with setting("jax_threefry_partitionable", not jax.config.jax_threefry_partitionable):
        assert_refused(copy, two[1].abstract_carry, "jax_threefry_partitionable is True there and")


def test_other_types_of_numbers_are_refused(copy, two):
    with jax.enable_x64(True):
        assert_refused(
            copy,
            wide(two[1].abstract_carry),
            "jax_enable_x64 is False there and True here, training/state/step is int32.* and int64",
        )


def test_a_run_of_the_other_types_is_refused_without_them(two, workdir):
    carry = two[1].fresh_carry(0)
    with jax.enable_x64(True), contextlib.closing(ckpt.Checkpoints(workdir)) as checkpoints:
        state = carry.state.replace(step=jnp.asarray(carry.state.step, jnp.int64))
        checkpoints.save(1, carry._replace(state=state), error=None)
    reason = r"jax_enable_x64 is True there and False here, training/state/step is int64\[\] there"
    assert_refused(workdir, two[1].abstract_carry, reason)


def test_another_optimizer_is_refused(copy, two, data_dir):
    """The state of the optimizer without momentum has no ``trace``."""
    like = tiny.make_setup(recipe(data_dir, **{"optimizer.momentum": 0.0})).abstract_carry
    reason = r"opt_state/1/0/trace/conv/bias is float32\[8\] there and missing here.*more differ"
    assert_refused(copy, like, reason)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError("no more"), "cannot be read .*MemoryError: no more"),
        (OSError(5, "Input/output error"), "cannot be read .*Input/output error"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"), "Out of memory"),
        (ValueError("PERMISSION_DENIED: no"), "cannot be read .*PERMISSION_DENIED"),
        (TypeError("unexpected keyword"), "cannot be read .*unexpected keyword"),
    ],
)
def test_what_fails_for_another_reason_is_refused(copy, two, monkeypatch, error, reason):
    with raising(monkeypatch, error):
        assert_refused(copy, two[1].abstract_carry, reason)


def test_what_another_version_wrote_is_refused(copy, two):
    shutil.rmtree(copy / ckpt.FOLDER / "2" / ckpt.RECORD)
    assert_refused(copy, two[1].abstract_carry, "another version of this program wrote it")


@contextlib.contextmanager
def unprivileged(folder):
    """Context manager: if this process is root, it becomes user nobody, who gets the folder.

    Root may read any file.
    """
    if os.geteuid():
        yield
        return
    for path in (folder, *folder.rglob("*")):
        os.chown(path, 65534, -1)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("inner", ["2", "2/record", "2/weights/_METADATA", "2/training/d"])
def test_what_may_not_be_read_is_refused(two, inner):
    with tempfile.TemporaryDirectory() as folder:  # its parents are accessible to all users
        workdir = epath.Path(folder) / "run"
        shutil.copytree(two[0], workdir)
        forbidden = pathlib.Path(workdir) / ckpt.FOLDER / inner
        with unprivileged(pathlib.Path(folder)):
            forbidden.chmod(0o000)
            checkpoints = ckpt.Checkpoints(workdir)
            with pytest.raises(ckpt.Unreadable, match=r"step 2 cannot be read .*Permission denied"):
                checkpoints.restore_newest(two[1].abstract_carry)
            forbidden.chmod(0o700)
        assert contents(workdir).keys() == {
            epath.Path(workdir / path.relative_to(two[0])) for path in contents(two[0])
        }


def test_weights_of_another_network_are_not_called_damaged(copy, two):
    like = {"params": {"conv": {"kernel": jax.ShapeDtypeStruct((3, 3, 1, 4), jnp.float32)}}}
    with pytest.raises(UserError, match=r"conv/kernel is float32\[3, 3, 1, 8\] there") as caught:
        ckpt.open_existing(copy).restore_weights(like, 2)
    assert "damage" not in str(caught.value)


def test_damaged_checkpoints_of_one_step_do_not_collide(copy, two):
    for number in range(3):
        truncate(copy / ckpt.FOLDER / "2")  # a flipped bit may be in bytes that nothing refers to
        with contextlib.closing(ckpt.Checkpoints(copy)) as checkpoints:
            _, said = checkpoints.restore_newest(two[1].abstract_carry)
            assert "resuming at step 1" in said[-1]
            assert checkpoints.steps == [1]
            checkpoints.save(2, two[1].fresh_carry(number), error=None)
    assert {path.name for path in (copy / ckpt.DAMAGED).iterdir()} == {"2", "2_2", "2_3"}


def test_any_bit_of_any_number_shows():
    rng = random.Random(0)
    tree = {
        "a": jnp.asarray(np.random.default_rng(0).normal(size=(3, 5, 7)), jnp.float32),
        "b": jnp.arange(11, dtype=jnp.int32),
        "c": jnp.ones((4, 4), jnp.bfloat16),
        "d": jnp.array(True),
    }
    before = np.asarray(fingerprint(tree))
    assert before.dtype == np.uint32
    assert len(set(before)) == 4
    for _ in range(100):
        name = rng.choice("abc")
        flat = np.array(tree[name]).ravel()
        words = flat.view(f"u{flat.dtype.itemsize}")
        place, bit = rng.randrange(len(words)), rng.randrange(8 * flat.dtype.itemsize)
        words[place] ^= words.dtype.type(1 << bit)
        changed = tree | {name: jnp.asarray(flat.reshape(tree[name].shape))}
        assert (np.asarray(fingerprint(changed)) != before).sum() == 1


def test_numbers_that_change_places_show():
    x = jnp.arange(6.0)
    assert fingerprint([x])[0] != fingerprint([x[::-1]])[0]
    assert fingerprint([x.reshape(2, 3)])[0] == fingerprint([x])[0]  # same words, same order
