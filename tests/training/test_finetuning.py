"""Fine-tuning: head first, layer-wise rates, frozen parameters and statistics, early stopping."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from etils import epath
from flax import nnx
from flax.traverse_util import flatten_dict
from workdirs import assert_same_end, final

from multipath_jax import checkpoints as ckpt
from multipath_jax import create_model, recipes
from multipath_jax.config.keys import NEEDED
from multipath_jax.errors import UserError
from multipath_jax.layers import batch_norm, frozen_statistics
from multipath_jax.models.adapter import adapt
from multipath_jax.trainer import Trainer
from multipath_jax.training import optimizer as optimizer_lib
from multipath_jax.training.optimizer import params_in_order
from multipath_jax.training.run import first_carry
from multipath_jax.training.setup import Setup

TOTAL, HEAD_FIRST = 12, 5
ALL = {
    "finetune.head_first": f"{HEAD_FIRST} steps",
    "finetune.layer_decay": 0.5,
    "finetune.frozen": "router_1/gate",
    "finetune.frozen_statistics": True,
    "patience": "30 epochs",
}


def recipe(data_dir, **changes):
    own = {"train_for": f"{TOTAL} steps", "schedule.boundaries": "", "eval_every": "4 steps"}
    return tiny.tiny_config(data_dir, **own | changes)


@pytest.fixture(scope="module")
def undisturbed(data_dir, tmp_path_factory):
    """The workdir and config of an uninterrupted run with all options of fine-tuning."""
    workdir = epath.Path(tmp_path_factory.mktemp("undisturbed"))
    config = recipe(data_dir, **ALL)
    tiny.train(config, workdir)
    return workdir, config


def variables_at(config, step, workdir):
    """The variables of a run after ``step`` steps, by path."""
    if step == 0:
        return flatten_dict(tiny.setup_of(config).fresh_carry(config.seed).state.variables, sep="/")
    tiny.train(config, workdir, until=f"{step} steps")
    state = final(workdir, tiny.setup_of(config)).state
    assert state.step == step
    return flatten_dict(state.variables, sep="/")


def changed(before, after):
    """The names of the variables that differ."""
    return {name for name in before if not np.array_equal(before[name], after[name])}


# End-to-end runs


@pytest.mark.parametrize("step", [3, 8], ids=["of the head alone", "of everything"])
def test_a_run_that_stops_and_goes_on_is_the_same_run(undisturbed, workdir, step):
    whole, config = undisturbed
    tiny.train(config, workdir, until=f"{step} steps")
    tiny.train(config, workdir)
    assert_same_end(workdir, whole)


@pytest.mark.slow  # the test above has all keys at once
@pytest.mark.parametrize("key", ALL)
def test_a_run_with_one_of_the_keys_goes_on_as_it_would_have(data_dir, tmp_path, key):
    config = recipe(data_dir, **{key: ALL[key]}, train_for="6 steps")
    tiny.train(config, tmp_path / "whole")
    tiny.train(config, tmp_path / "parts", until="3 steps")
    tiny.train(config, tmp_path / "parts")
    assert_same_end(tmp_path / "parts", tmp_path / "whole")


def test_only_the_head_is_trained_at_first(undisturbed, data_dir, workdir, capsys):
    _, config = undisturbed
    start = variables_at(config, 0, workdir)
    early = variables_at(config, HEAD_FIRST, workdir)
    assert changed(start, early) == {"params/head/kernel", "params/head/bias"}
    assert f"only head is trained up to step {HEAD_FIRST}" in capsys.readouterr().out
    late = variables_at(config, HEAD_FIRST + 1, workdir)
    kept = {name for name in start if name.startswith(("params/router_1/gate", "batch_stats"))}
    assert len(kept) == 6
    assert changed(early, late) == start.keys() - kept


# Early stopping


@pytest.fixture
def errors(data_dir, monkeypatch):
    """A function that sets the errors of the next evaluations, whatever the weights."""

    def set_errors(config, *values):
        found = iter(values)
        for name in ("evaluate", "evaluate_fully"):
            evaluate = lambda _: {"loss": 1.0, "error": float(next(found))}  # noqa: E731
            monkeypatch.setattr(tiny.setup_of(config), name, evaluate)

    return set_errors


def patient(data_dir, patience="3 steps"):
    """A config with early stopping, checked every two steps: a patience of 3 steps acts as 4."""
    own = {"train_for": "20 steps", "eval_every": "2 steps", "checkpoint_every": "100 epochs"}
    return recipe(data_dir, patience=patience, **own)


def test_a_run_stops_when_the_error_was_above_its_lowest_for_long(
    errors, data_dir, workdir, capsys
):
    config = patient(data_dir)
    errors(config, 50, 60, 40, 40, 45, 41, 0)  # the lowest at step 6, then at 8
    result = tiny.train(config, workdir)
    assert (result.step, result.best_error, result.finished) == (12, 40.0, True)
    assert result.test["error"] == 41.0
    said = "stopped early at step 12: the test error was lowest, 40.00 %, at step 8"
    assert f"{said} (patience=3 steps)" in capsys.readouterr().out
    kept = ckpt.open_existing(workdir)
    assert (kept.latest, kept.best) == (12, 8)


def test_a_run_that_stopped_early_is_over_until_it_is_given_more_patience(
    errors, data_dir, workdir, capsys
):
    config, longer = patient(data_dir), patient(data_dir, "1 epoch")
    errors(config, 40, 50, 50, 50)
    assert tiny.train(config, workdir).step == 6
    again = tiny.train(config, workdir)
    assert (again.step, again.finished) == (6, True)
    assert "this run has ended at step 6" in capsys.readouterr().out
    errors(longer, *[30] * 7)
    more = tiny.train(longer, workdir)
    assert (more.step, more.finished, more.stopped_early) == (20, True, False)


@pytest.mark.parametrize("step", [3, 4, 5])
def test_a_run_that_resumes_stops_where_it_would_have(errors, data_dir, workdir, step):
    config = patient(data_dir)
    errors(config, 40, 50, 50)
    first = tiny.train(config, workdir, until=f"{step} steps")
    assert (first.step, first.finished) == (step, False)
    errors(config, *[45] * (3 - step // 2), 0)
    assert tiny.train(config, workdir).step == 6


def test_a_run_that_gets_better_to_the_end_is_not_stopped(errors, data_dir, workdir):
    config = patient(data_dir)
    errors(config, *range(50, 40, -1))
    result = tiny.train(config, workdir)
    assert (result.step, result.finished, result.stopped_early) == (20, True, False)


# Components


def test_updates_are_scaled_by_parameter():
    params = {"a": jnp.ones(2), "b": jnp.ones(3), "c": jnp.ones(1)}
    transform = optimizer_lib.scale_by_layer(
        {"a": 0.25, "b": 0.0, "c": 1.0}, {"a": False, "b": False, "c": True}, head_first=2
    )
    state = transform.init(params)
    for factors in ({"a": 0.0, "b": 0.0, "c": 1.0},) * 2 + ({"a": 0.25, "b": 0.0, "c": 1.0},):
        scaled, state = transform.update(params, state)
        for name, factor in factors.items():
            np.testing.assert_array_equal(scaled[name], factor * params[name])


def factors(config, step):
    """The factor of every parameter of `tiny.Tiny` in a step, by path."""
    setup = tiny.setup_of(config)
    params = optimizer_lib.params_in_order(tiny.Tiny(), setup.image_shape)
    head_first = setup.plan.head_first
    transform = optimizer_lib.rates_by_layer(config.finetune, head_first, params)
    ones = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), params)
    found, _ = transform.update(ones, optimizer_lib.ByLayerState(jnp.int32(step)))
    return {path: float(leaf.max()) for path, leaf in flatten_dict(found, sep="/").items()}


def test_rates_decrease_from_the_last_layer_to_the_first(data_dir):
    layers = ("conv", "norm", "router_1", "router_2", "head")
    found = factors(recipe(data_dir, **{"finetune.layer_decay": 0.5}), 0)
    assert {path.split("/")[0] for path in found} == {*layers}
    for path, factor in found.items():
        assert factor == 0.5 ** (4 - layers.index(path.split("/")[0]))


def test_a_head_of_more_than_the_last_layer(data_dir):
    config = recipe(
        data_dir, **{"finetune.head_first": "3 steps", "finetune.head": "router_*,head"}
    )
    for path, factor in factors(config, 2).items():
        assert factor == path.startswith(("router", "head"))
    assert {*factors(config, 3).values()} == {1.0}


def test_layers_are_in_the_order_of_the_network():
    layers = optimizer_lib.params_in_order(create_model("ResNet8-2-CC"), (32, 32, 3))
    assert list(layers) == [
        *("stem", "router_1", "stack_1", "router_2", "stack_2", "router_3", "stack_3"),
        *("router_4", "dense"),
    ]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ("stem", {"stem"}),
        ("stack_1, stem", {"stem", "stack_1"}),
        ("stack_*", {"stack_1", "stack_2", "stack_3"}),
        ("router_?/gate", {"router_1", "router_2", "router_3", "router_4"}),
        ("bias", {"dense"}),
        ("", set()),
    ],
)
def test_a_pattern_names_a_layer_or_what_is_in_it(patterns, expected):
    params = optimizer_lib.params_in_order(create_model("ResNet8-2-CC"), (32, 32, 3))
    found = flatten_dict(optimizer_lib.matching(params, patterns))
    layers = {key[0] for key, matches in found.items() if matches}
    if patterns == "bias":  # biases of BatchNorm match, too
        assert layers > expected
        assert {key[-1] for key, matches in found.items() if matches} == {"bias"}
    else:
        assert layers == expected


class Flexible(nn.Module):
    """Every way to specify whether BatchNorm uses its running statistics."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(not train)(x)
        x = nn.BatchNorm()(x, not train)
        x = nn.BatchNorm()(x, use_running_average=not train)
        return nn.relu(batch_norm(train, jnp.float32)(x))


def test_frozen_statistics_in_training_are_evaluation():
    x = jax.random.normal(jax.random.key(0), (5, 3))
    network = Flexible()
    _, updates = network.init_with_output(jax.random.key(1), x)
    _, moved = network.apply(updates, x, train=True, mutable=["batch_stats"])
    variables = {"params": updates["params"], **moved}
    expected = network.apply(variables, x)
    with frozen_statistics() as layers:
        outputs, after = network.apply(variables, x, train=True, mutable=["batch_stats"])
    assert len(layers) == 4
    np.testing.assert_array_equal(outputs, expected)
    jax.tree.map(np.testing.assert_array_equal, after, moved)
    free, after = network.apply(variables, x, train=True, mutable=["batch_stats"])
    assert np.abs(free - expected).max() > 0.1
    assert changed(flatten_dict(moved), flatten_dict(after))


@pytest.mark.parametrize("name", ["BaseCNN-2-CC", "ResNet8-2-CC", "VGG11-BN"])
def test_every_batch_norm_of_our_networks_is_frozen(name):
    """The networks include paths under ``vmap``."""
    network, images = create_model(name), jnp.zeros((2, 32, 32, 3))
    variables = jax.eval_shape(network.init, jax.random.key(0), images)

    def train(variables):
        with frozen_statistics():
            return network.apply(variables, images, train=True, mutable=["batch_stats"])[1]

    jaxpr = jax.make_jaxpr(train)(variables)
    given, kept = jaxpr.jaxpr.invars, jaxpr.jaxpr.outvars
    assert len(kept) == len(jax.tree.leaves(variables["batch_stats"])) > 0
    assert set(kept) <= set(given)  # each statistic is returned unchanged


# Errors


class FromNNX(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(64, rngs=rngs)
        self.dense = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x):
        return self.dense(self.norm(x.reshape(len(x), -1)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"finetune.layer_decay": 0.0}, "layer_decay=0.0 must be above 0 and at most 1"),
        ({"finetune.layer_decay": 1.5}, "layer_decay=1.5 must be above 0 and at most 1"),
        ({"finetune.head": "head"}, "finetune.head needs finetune.head_first"),
        ({"finetune.head_first": "soon"}, "finetune.head_first='soon' is not a duration"),
        ({"patience": "3"}, "patience='3' is not a duration"),
        (
            {"finetune.frozen": "conv, haed"},
            "finetune.frozen: no parameter matches 'haed'; the layers are conv, norm, router_1, "
            "router_2, head",
        ),
        ({"finetune.head": "x", "finetune.head_first": "1 epoch"}, "no parameter matches 'x'"),
        ({"finetune.frozen": "*"}, "leaves no parameter to train"),
        (
            {"finetune.frozen": "head", "finetune.head_first": "1 epoch"},
            "finetune.head_first trains only head, which finetune.frozen=head freezes",
        ),
        ({"init_from": NEEDED}, "init_from is not set; set --config.init_from=FILE"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    changes, message, data_dir, workdir
):
    with pytest.raises(UserError) as caught:
        tiny.make_setup(recipe(data_dir, **changes))
    assert message in str(caught.value)
    assert not workdir.exists()


def test_statistics_that_cannot_be_frozen_are_refused(data_dir):
    config = recipe(data_dir, **{"finetune.frozen_statistics": True})
    with pytest.raises(UserError, match=r"needs a network with flax\.linen\.BatchNorm"):
        Trainer(config, model=FromNNX(nnx.Rngs(0)))
    with pytest.raises(UserError, match="this one has none"):
        Setup(config, model=nn.Sequential([lambda x, **_: x.reshape(len(x), -1), nn.Dense(10)]))


def test_layers_of_an_nnx_module_are_in_the_order_of_its_attributes():
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.stem = nnx.Linear(4, 4, rngs=rngs)
            self.blocks = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(2)])
            self.head = nnx.Linear(4, 3, rngs=rngs)

        def __call__(self, x):
            x = self.stem(x.reshape(len(x), -1))
            for block in self.blocks:
                x = block(x)
            return self.head(x)

    params = params_in_order(adapt(Network(nnx.Rngs(0))), (2, 2, 1))
    assert list(params) == ["stem", "blocks", "head"]
    assert list(params["blocks"]) == ["0", "1"]


# The recipe


def test_the_recipe_normalizes_as_the_weights_require():
    large, small = recipes.finetune(), recipes.finetune("BaseCNN-2-CC")
    assert (large.dataset.mean, large.dataset.std) == (recipes.IMAGENET_MEAN, recipes.IMAGENET_STD)
    assert (large.dataset.crop, small.dataset.crop) == (224, 32)
    assert not small.dataset.mean
    assert large.patience
    assert large.init_from == NEEDED


def test_weights_of_another_normalization_are_told_of(undisturbed, data_dir):
    changes = {"init_from": str(undisturbed[0])}
    for mean, said in (("", False), ("0.5", True)):
        config = recipe(data_dir, **changes, **{"dataset.mean": mean, "dataset.std": mean})
        _, notes = first_carry(tiny.setup_of(config), config)
        start = "the weights were trained on images normalized by mean 0.3"
        assert any(note.startswith(start) for note in notes) == said, notes
