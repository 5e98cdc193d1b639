import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from multipath_jax.errors import UserError
from multipath_jax.training import checkpoints as ckpt
from multipath_jax.training.config import default_config
from multipath_jax.training.parts import Parts


@pytest.fixture
def parts(tiny_model, data_dir):
    return Parts(tiny.tiny_config(data_dir))


def moved(carry, by):
    """Another carry: every floating number moved by so much."""
    return jax.tree.map(lambda x: x + by if x.dtype == jnp.float32 else x, carry)


def files(folder):
    paths = pathlib.Path(folder).rglob("*")
    return {path: path.read_bytes() for path in paths if path.is_file()}


def test_what_is_saved_comes_back_bit_for_bit(parts, workdir):
    carry = moved(parts.fresh_carry(0), 1 / 3)
    checkpoints = ckpt.Checkpoints(workdir)
    checkpoints.save(7, carry, error=None)
    checkpoints.close()
    again = ckpt.Checkpoints(workdir)
    found = again.restore(parts.abstract_carry, again.latest)
    jax.tree.map(np.testing.assert_array_equal, found, carry)
    assert jax.tree.structure(found) == jax.tree.structure(carry)
    assert all(
        x.sharding.is_equivalent_to(parts.everywhere, x.ndim) for x in jax.tree.leaves(found)
    )


def test_an_average_is_the_weights_and_comes_back_beside_what_it_is_of(
    tiny_model, data_dir, workdir
):
    parts = Parts(tiny.tiny_config(data_dir, ema=0.9))
    carry = parts.fresh_carry(0)
    average = jax.tree.map(lambda x: x + 1 / 3, carry.state.variables)
    carry = carry._replace(state=carry.state.replace(average=average))
    checkpoints = ckpt.Checkpoints(workdir)
    checkpoints.save(7, carry, error=None)
    checkpoints.wait()
    found = checkpoints.restore(parts.abstract_carry, 7)
    jax.tree.map(np.testing.assert_array_equal, found, carry)
    kept = checkpoints.restore_weights(parts.abstract_carry.state.variables, 7)
    jax.tree.map(np.testing.assert_array_equal, kept, average)


def test_without_an_average_the_items_are_those_of_before_there_was_one(parts):
    weights, training = ckpt._parts(parts.abstract_carry)
    assert weights.keys() == {"params", "batch_stats"}
    assert training["state"].keys() == {"step", "opt_state", "rng"}


def test_the_best_and_the_two_latest_are_kept(parts, workdir):
    carry = parts.fresh_carry(0)
    checkpoints = ckpt.Checkpoints(workdir)
    assert (checkpoints.latest, checkpoints.best, checkpoints.best_error) == (None, None, None)
    errors = {1: 9.0, 2: 4.0, 3: None, 4: 6.0, 5: 5.0, 6: None}
    for step, error in errors.items():
        checkpoints.save(step, carry, error)
    checkpoints.close()
    names = {path.name for path in (workdir / ckpt.FOLDER).iterdir()}
    assert names == {"2", "5", "6"}
    again = ckpt.open_existing(workdir)
    assert (again.latest, again.best, again.best_error) == (6, 2, 4.0)


def test_saving_a_step_again_changes_nothing(parts, workdir):
    carry = parts.fresh_carry(0)
    checkpoints = ckpt.Checkpoints(workdir)
    checkpoints.save(3, carry, error=1.0)
    checkpoints.wait()
    before = files(workdir)
    checkpoints.save(3, moved(carry, 1.0), error=None)
    checkpoints.close()
    assert files(workdir) == before


def test_a_workdir_of_another_recipe_is_refused_untouched(workdir):
    config = default_config()
    workdir.mkdir()
    ckpt.write_config(workdir, config)
    before = files(workdir)
    config.schedule.rate, config.model.name = 0.2, "BaseCNN"
    config.log_every = "3 steps"
    with pytest.raises(UserError) as caught:
        ckpt.check_workdir(workdir, config)
    message = str(caught.value)
    assert "model.name: 'BaseCNN-2-CC' -> 'BaseCNN'; schedule.rate: 0.1 -> 0.2" in message
    assert "log_every" not in message
    assert files(workdir) == before


def test_the_same_recipe_is_welcome(workdir):
    config = default_config()
    ckpt.check_workdir(workdir, config)
    assert not workdir.exists()
    workdir.mkdir()
    ckpt.write_config(workdir, config)
    config.log_every, config.dataset.data_dir = "3 steps", "/elsewhere"
    ckpt.check_workdir(workdir, config)


def test_what_is_no_workdir_is_refused(tmp_path, workdir):
    workdir.write_text("a file")
    with pytest.raises(UserError, match="is no folder"):
        ckpt.check_workdir(workdir, default_config())
    with pytest.raises(UserError, match="cannot be written"), ckpt.claimed(workdir):
        pass
    other = workdir.parent / "other"
    (other / ckpt.FOLDER).mkdir(parents=True)
    with pytest.raises(UserError, match=r"checkpoints but no config.json"):
        ckpt.check_workdir(other, default_config())


@pytest.fixture
def source(parts, workdir):
    """A workdir whose best weights are 1/3 off those of a fresh run, its latest 1 off."""
    checkpoints = ckpt.Checkpoints(workdir)
    checkpoints.save(1, moved(parts.fresh_carry(0), 1 / 3), error=1.0)
    checkpoints.save(2, moved(parts.fresh_carry(0), 1.0), error=2.0)
    checkpoints.close()
    return workdir


def test_weights_of_another_run(parts, source):
    fresh = parts.fresh_carry(0).state
    before = files(source)
    found = ckpt.initialize_from(source, fresh)
    assert (found.missing, found.extra) == ([], [])
    expected = moved(fresh.variables, 1 / 3)
    jax.tree.map(np.testing.assert_array_equal, found.state.variables, expected)
    jax.tree.map(np.testing.assert_array_equal, found.state.opt_state, fresh.opt_state)
    assert found.state.step == 0
    assert files(source) == before


def test_what_does_not_fit_is_listed_and_stays_fresh(parts, source):
    fresh = parts.fresh_carry(0).state
    params = dict(fresh.params)
    params["head"] = {"kernel": jnp.zeros((512, 100)), "bias": jnp.zeros(100)}  # other classes
    params["new"] = params.pop("router_1")
    found = ckpt.initialize_from(source, fresh.replace(params=params))
    gate = [f"gate/{name}" for name in ("b1", "b2", "w1", "w2")]
    heads = ["params/head/bias", "params/head/kernel"]
    assert found.missing == [*heads, *(f"params/new/{name}" for name in gate)]
    assert found.extra == [*heads, *(f"params/router_1/{name}" for name in gate)]
    for name in ("head", "new"):
        jax.tree.map(np.testing.assert_array_equal, found.state.params[name], params[name])
    expected = moved(fresh.params["conv"], 1 / 3)
    jax.tree.map(np.testing.assert_array_equal, found.state.params["conv"], expected)


def test_weights_of_nothing_alike_are_refused(parts, source, tmp_path):
    fresh = parts.fresh_carry(0).state
    with pytest.raises(UserError, match="nothing in it fits"):
        ckpt.initialize_from(source, fresh.replace(params={"other": jnp.ones(3)}, batch_stats={}))
    with pytest.raises(UserError, match="has no checkpoint"):
        ckpt.initialize_from(tmp_path / "nowhere", fresh)
    assert not (tmp_path / "nowhere").exists()


def test_a_workdir_is_one_runs_at_a_time(workdir):
    with ckpt.claimed(workdir):
        refused = pytest.raises(UserError, match=r"in use by process \d+ on .*another workdir")
        with refused, ckpt.claimed(workdir):
            pass
    with ckpt.claimed(workdir):  # the claim ended with its holder
        pass
