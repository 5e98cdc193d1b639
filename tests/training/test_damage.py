"""Checkpoints that were damaged after they were written: seen, said, and gone behind."""

import pathlib
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from damage import empty, flip, remove, truncate
from workdirs import final

from multipath_jax.errors import UserError
from multipath_jax.training import checkpoints as ckpt
from multipath_jax.training import loop, parts
from multipath_jax.training.fingerprint import fingerprint

pytestmark = pytest.mark.usefixtures("tiny_model")


def recipe(data_dir, **changes):
    return tiny.tiny_config(data_dir, **{"train_for": "2 epochs", "schedule.drops": ""} | changes)


@pytest.fixture(scope="module")
def whole(data_dir, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("multipath_jax.training.parts.create_model", tiny.create_model)
        workdir = tmp_path_factory.mktemp("whole")
        loop.train(recipe(data_dir), workdir)
        return final(workdir, recipe(data_dir))


def stopped(data_dir, workdir, monkeypatch):
    """A run with checkpoints at steps 7 and 9, of 22."""
    monkeypatch.setattr(loop.Pace, "steps", lambda _, limit: min(limit, 1))
    calls = iter([False] * 8 + [True])
    loop.train(recipe(data_dir), workdir, should_stop=lambda: next(calls))
    return pathlib.Path(workdir) / ckpt.FOLDER


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        flip,
        pytest.param(empty, marks=pytest.mark.slow),
        pytest.param(remove, marks=pytest.mark.slow),
    ],
)
def test_a_damaged_checkpoint_is_gone_behind(data_dir, workdir, whole, damage, monkeypatch, capsys):
    folder = stopped(data_dir, workdir, monkeypatch)
    damage(folder / "9")
    loop.train(recipe(data_dir), workdir)
    printed = capsys.readouterr().out
    assert "the checkpoint of step 9 is damaged" in printed
    assert "resuming at step 7 of" in printed
    assert [path.name.split("_")[0] for path in (workdir / ckpt.DAMAGED).iterdir()] == ["9"]
    jax.tree.map(np.testing.assert_array_equal, final(workdir, recipe(data_dir)), whole)


def test_a_run_never_begins_afresh_silently(data_dir, workdir, monkeypatch, capsys):
    folder = stopped(data_dir, workdir, monkeypatch)
    for step in ("7", "9"):
        flip(folder / step)
    with pytest.raises(UserError, match=r"step 7 is damaged .*none is left before it"):
        loop.train(recipe(data_dir), workdir)
    assert len(list((workdir / ckpt.DAMAGED).iterdir())) == 2
    loop.train(recipe(data_dir), workdir)
    assert "beginning afresh, for all checkpoints were damaged" in capsys.readouterr().out


def test_a_checkpoint_of_another_network_is_not_called_damaged(data_dir, workdir, monkeypatch):
    folder = stopped(data_dir, workdir, monkeypatch)
    monkeypatch.setattr(parts, "create_model", lambda *_: tiny.Tiny(features=4))
    with pytest.raises(UserError, match=r"norm/mean is \(8,\) there and \(4,\) here; go on with"):
        loop.train(recipe(data_dir), workdir)
    assert (folder / "9").exists()


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
    assert fingerprint([x.reshape(2, 3)])[0] == fingerprint([x])[0]  # the same words in order
