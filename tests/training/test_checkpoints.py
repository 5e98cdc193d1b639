import contextlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from damage import contents, flip
from etils import epath
from orbax.checkpoint import CheckpointManager

from multipath_jax import checkpoints as ckpt
from multipath_jax.checkpoints import working_copy
from multipath_jax.config.keys import default_config
from multipath_jax.errors import UserError
from multipath_jax.weights.convert import listed

pytestmark = [
    pytest.mark.usefixtures("collected"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def setup(data_dir):
    return tiny.setup_of(tiny.tiny_config(data_dir))


def moved(carry, by):
    """Adds ``by`` to every float32 array of a tree."""
    return jax.tree.map(lambda x: x + by if x.dtype == jnp.float32 else x, carry)


def test_what_is_saved_comes_back_bit_for_bit(setup, workdir):
    carry = moved(setup.fresh_carry(0), 1 / 3)
    checkpoints = ckpt.Checkpoints(workdir)
    checkpoints.save(7, carry, error=None)
    checkpoints.close()
    again = ckpt.Checkpoints(workdir)
    found = again.restore(setup.abstract_carry, again.latest)
    jax.tree.map(np.testing.assert_array_equal, found, carry)
    assert jax.tree.structure(found) == jax.tree.structure(carry)
    assert all(
        x.sharding.is_equivalent_to(setup.everywhere, x.ndim) for x in jax.tree.leaves(found)
    )


def test_an_average_is_the_weights_and_comes_back_beside_what_it_is_of(data_dir, workdir):
    setup = tiny.setup_of(tiny.tiny_config(data_dir, ema=0.9))
    carry = setup.fresh_carry(0)
    average = jax.tree.map(lambda x: x + 1 / 3, carry.state.variables)
    carry = carry._replace(state=carry.state.replace(average=average))
    checkpoints = ckpt.Checkpoints(workdir)
    checkpoints.save(7, carry, error=None)
    checkpoints.wait()
    found = checkpoints.restore(setup.abstract_carry, 7)
    jax.tree.map(np.testing.assert_array_equal, found, carry)
    kept = checkpoints.restore_weights(setup.abstract_carry.state.variables, 7)
    jax.tree.map(np.testing.assert_array_equal, kept, average)


def test_without_an_average_none_is_stored(setup):
    items = setup.abstract_carry.items()
    assert items["weights"].keys() == {"params", "batch_stats"}
    assert items["training"]["state"].keys() == {"step", "opt_state", "rng"}


def test_the_best_and_the_two_latest_are_kept(setup, workdir):
    carry = setup.fresh_carry(0)
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


def test_saving_a_step_again_changes_nothing(setup, workdir):
    carry = setup.fresh_carry(0)
    checkpoints = ckpt.Checkpoints(workdir)
    checkpoints.save(3, carry, error=1.0)
    checkpoints.wait()
    before = contents(workdir)
    checkpoints.save(3, moved(carry, 1.0), error=None)
    checkpoints.close()
    assert contents(workdir) == before


def test_a_workdir_of_another_recipe_is_refused_untouched(workdir):
    config = default_config()
    workdir.mkdir()
    ckpt.write_config(workdir, config)
    before = contents(workdir)
    config.schedule.learning_rate, config.model.name = 0.2, "BaseCNN"
    config.log_every = "3 steps"
    with pytest.raises(UserError) as caught:
        ckpt.check_workdir(workdir, config)
    message = str(caught.value)
    assert "model.name: 'BaseCNN-2-CC' -> 'BaseCNN'; schedule.learning_rate: 0.1 -> 0.2" in message
    assert "log_every" not in message
    assert contents(workdir) == before


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
    with pytest.raises(UserError, match="is not a folder"):
        ckpt.check_workdir(workdir, default_config())
    with pytest.raises(UserError, match="cannot be written"), ckpt.claimed(workdir):
        pass
    other = workdir.parent / "other"
    (other / ckpt.FOLDER / "7").mkdir(parents=True)
    with pytest.raises(UserError, match=r"checkpoints but no config.json"):
        ckpt.check_workdir(other, default_config())


@pytest.fixture(scope="module")
def original(data_dir, tmp_path_factory):
    """A workdir with the weights of a fresh run plus 1/3 (the best) and plus 1 (the latest)."""
    setup = tiny.setup_of(tiny.tiny_config(data_dir))
    workdir = epath.Path(tmp_path_factory.mktemp("original")) / "run"
    checkpoints = ckpt.Checkpoints(workdir)
    checkpoints.save(1, moved(setup.fresh_carry(0), 1 / 3), error=1.0)
    checkpoints.save(2, moved(setup.fresh_carry(0), 1.0), error=2.0)
    checkpoints.close()
    return workdir


@pytest.fixture
def source(original, workdir):
    """A copy of ``original``, which tests may change."""
    shutil.copytree(original, workdir)
    return workdir


def from_(source, partial=False):
    """The config of a run that starts from the weights of another run."""
    config = default_config()
    config.init_from, config.init_partial = str(source), partial
    return config


def test_weights_of_another_run(setup, source):
    fresh = setup.fresh_carry(0).state
    before = contents(source)
    variables, found = ckpt.initialize_from(from_(source), fresh.variables)
    assert (found.missing, found.reshaped, found.extra) == ([], [], [])
    expected = moved(fresh.variables, 1 / 3)
    jax.tree.map(np.testing.assert_array_equal, variables, expected)
    assert contents(source) == before


def test_what_does_not_fit_is_listed_and_stays_fresh(setup, source):
    fresh = setup.fresh_carry(0).state
    params = dict(fresh.params)
    params["head"] = {"kernel": jnp.zeros((512, 100)), "bias": jnp.zeros(100)}  # 100 classes
    params["new"] = params.pop("router_1")
    config = from_(source, partial=True)
    variables, found = ckpt.initialize_from(config, fresh.replace(params=params).variables)
    gate = [f"gate/{name}" for name in ("b1", "b2", "w1", "w2")]
    assert found.missing == [f"params/new/{name}" for name in gate]
    assert found.extra == [f"params/router_1/{name}" for name in gate]
    assert found.reshaped == [
        "params/head/bias (10,) there and (100,) here",
        "params/head/kernel (512, 10) there and (512, 100) here",
    ]
    for name in ("head", "new"):
        jax.tree.map(np.testing.assert_array_equal, variables["params"][name], params[name])
    expected = moved(fresh.params["conv"], 1 / 3)
    jax.tree.map(np.testing.assert_array_equal, variables["params"]["conv"], expected)


def test_a_part_alone_is_refused_unless_asked_for(setup, source, workdir):
    """It does not matter whether the source has additional arrays."""
    fresh = setup.fresh_carry(0).state
    params = dict(fresh.params)
    params["head"] = {"kernel": jnp.zeros((512, 100)), "bias": jnp.zeros(100)}
    params["new"] = params.pop("router_1")
    other, own = fresh.replace(params=params), workdir.parent / "own"
    total = len(jax.tree.leaves(other.variables))
    config = from_(source)
    ckpt.check_source(own, config)
    with pytest.raises(UserError) as caught:
        ckpt.check_source(own, config, variables=other.variables)
    said = str(caught.value)
    assert f"{total - 6} of the {total} arrays" in said
    assert "shape: params/head/bias (10,) there and (100,) here, params/head/kernel" in said
    assert "missing there: params/new/gate/b1 (nearest there: params/router_1/gate/b1), " in said
    assert "--config.init_partial=True" in said
    ckpt.check_source(own, from_(source, partial=True), variables=other.variables)
    del params["head"], params["new"]
    ckpt.initialize_from(config, fresh.replace(params=params).variables)


def test_long_lists_are_cut():
    assert listed([*"abcdefgh"]) == "a, b, c, d, e, f, g, h"
    assert listed([*"abcdefghij"]) == "a, b, c, d, e, f, g, h and 2 more"


def test_weights_of_nothing_alike_are_refused(setup, source, tmp_path):
    fresh = setup.fresh_carry(0).state
    nothing_alike = fresh.replace(params={"other": jnp.ones(3)}, collections={})
    with pytest.raises(UserError, match="nothing in it fits"):
        ckpt.initialize_from(from_(source), nothing_alike.variables)
    with pytest.raises(UserError, match="has no checkpoint"):
        ckpt.initialize_from(from_(tmp_path / "nowhere"), fresh.variables)
    assert not (tmp_path / "nowhere").exists()


def test_a_workdir_is_one_runs_at_a_time(workdir):
    with ckpt.claimed(workdir):
        for _ in range(2):  # a refusal does not change the owner's name
            refused = pytest.raises(UserError, match=r"in use by process \d+ on .*another workdir")
            with refused, ckpt.claimed(workdir):
                pass
    with ckpt.claimed(workdir):  # the claim has been released
        pass


@pytest.mark.parametrize(
    "name", ["[ab]*? 50%20off#1", pytest.param("grid[lr=0.3]", marks=pytest.mark.slow)]
)
def test_a_workdir_may_have_any_name(setup, tmp_path, name):
    """``[x]``, ``*`` and ``?`` are patterns in etils and glob; ``%`` and ``#`` are URL syntax."""
    workdir = epath.Path(tmp_path) / name / "run"
    carry = moved(setup.fresh_carry(0), 1 / 3)
    with contextlib.closing(ckpt.Checkpoints(workdir)) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, carry, error=None)
    again = ckpt.open_existing(workdir)
    assert again.steps == [2, 3]
    jax.tree.map(np.testing.assert_array_equal, again.restore(setup.abstract_carry, 3), carry)
    with pytest.raises(UserError, match="has no checkpoint; its trials do: run"):
        ckpt.open_existing(workdir.parent)


def test_no_other_workdir_is_taken_for_it(setup, tmp_path):
    """The workdirs ``[ab]`` and ``a`` differ, although the pattern ``[ab]`` matches ``a``."""
    for number, name in enumerate("a[ab]".partition("[ab]")[:2]):
        with contextlib.closing(ckpt.Checkpoints(tmp_path / name)) as checkpoints:
            checkpoints.save(1, moved(setup.fresh_carry(0), float(number)), error=None)
    found = ckpt.open_existing(tmp_path / "[ab]").restore(setup.abstract_carry, 1)
    jax.tree.map(np.testing.assert_array_equal, found, moved(setup.fresh_carry(0), 1.0))


def test_a_backslash_is_refused_before_anything_is_made(tmp_path):
    """TensorStore interprets a backslash as a slash, and would write to another folder."""
    workdir = epath.Path(tmp_path) / "back\\slash" / "run"
    with pytest.raises(UserError, match="has a backslash"):
        ckpt.check_workdir(workdir, default_config())
    assert not list(tmp_path.iterdir())


def test_a_first_checkpoint_that_cannot_be_found_again_is_an_error_at_once(
    setup, workdir, monkeypatch
):
    """Orbax reports no error if it finds no parts of a checkpoint to merge."""
    monkeypatch.setattr(working_copy.Folder, "glob", lambda *_: iter(()))
    checkpoints = ckpt.Checkpoints(workdir)
    with pytest.raises(ckpt.WritingFailed, match=r"step 1 is damaged .*it was just written to"):
        checkpoints.save(1, setup.fresh_carry(0), error=None)


def test_a_checkpoint_that_is_deleted_while_it_is_read_is_replaced_by_the_then_latest(
    setup, workdir, monkeypatch
):
    monkeypatch.setattr("multipath_jax.checkpoints.existing.SETTLING", 0.0)
    like = setup.abstract_carry.state.variables
    tried = []
    with contextlib.closing(ckpt.Checkpoints(workdir)) as writer:
        writer.save(1, setup.fresh_carry(0), error=5.0)

        def read(found, step):
            tried.append(step)
            if len(tried) == 1:  # the run continues; the second checkpoint is better
                writer.save(2, moved(setup.fresh_carry(0), 1.0), error=4.0)
                writer.save(3, moved(setup.fresh_carry(0), 2.0), error=3.0)
                writer.wait()
            return found.restore_weights(like, step)

        step, weights = ckpt.read_existing(workdir, "best", read)
    assert (step, tried) == (3, [1, 3])
    expected = moved(setup.fresh_carry(0).state.variables, 2.0)
    jax.tree.map(np.testing.assert_array_equal, weights, expected)
    tried = [0]  # a checkpoint requested by its step is not replaced
    with pytest.raises(UserError, match=r"has no checkpoint 1; choose best, latest or 2 or 3"):
        ckpt.read_existing(workdir, 1, read)


def test_a_checkpoint_that_is_deleted_while_the_folder_is_opened(source, monkeypatch):
    honest, calls = CheckpointManager.all_steps, []

    def vanishing(manager, *arguments):
        calls.append(manager)
        if len(calls) == 1:
            raise FileNotFoundError("1")
        return honest(manager, *arguments)

    monkeypatch.setattr(CheckpointManager, "all_steps", vanishing)
    assert ckpt.open_existing(source).steps == [1, 2]


def test_a_damaged_checkpoint_of_a_run_at_rest_is_damaged(setup, source):
    flip(source / ckpt.FOLDER / "1")
    like = setup.abstract_carry.state.variables
    before = contents(source)
    with pytest.raises(ckpt.Damaged, match="step 1 is damaged"):
        ckpt.read_existing(source, "best", lambda found, step: found.restore_weights(like, step))
    assert contents(source) == before


def test_whose_record_cannot_be_read_is_kept(setup, source):
    """Such a checkpoint may be the best one, and only restoring it raises `Damaged`."""
    record = source / ckpt.FOLDER / "1" / ckpt.RECORD / ckpt.RECORD_FILE
    record.write_bytes(record.read_bytes().replace(b"1.0", b"9.0", 1))
    with contextlib.closing(ckpt.Checkpoints(source)) as checkpoints:
        assert (checkpoints.best, checkpoints.best_error) == (2, 2.0)
        for step in (3, 4, 5):
            checkpoints.save(step, setup.fresh_carry(0), error=3.0)
    again = ckpt.open_existing(source)
    assert again.steps == [1, 2, 4, 5]
    with pytest.raises(ckpt.Damaged, match="its record is not what was saved"):
        again.restore(setup.abstract_carry, 1)


def test_weights_of_another_type_are_cast(setup, workdir):
    carry = setup.fresh_carry(0)
    small = jax.tree.map(lambda x: x.astype(jnp.float16), carry.state.params)
    with contextlib.closing(ckpt.Checkpoints(workdir)) as checkpoints:
        checkpoints.save(1, carry._replace(state=carry.state.replace(params=small)), error=1.0)
    found = ckpt.initialize_from(from_(workdir), moved(carry.state, 1.0).variables)[0]["params"]
    jax.tree.map(np.testing.assert_array_equal, found, small)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype("float32")}
