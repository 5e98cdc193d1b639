"""`Trainer` with a user's own network, data, optimizer or loss: training, resuming and loading."""

import multiprocessing
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from sklearn.datasets import load_digits

import multipath_jax as mp
from multipath_jax.config.keys import default_config
from multipath_jax.errors import UserError
from multipath_jax.models import registry
from multipath_jax.models.family import Family

DIGITS = load_digits()
IMAGES, LABELS = DIGITS.images.astype(np.uint8) * 15, DIGITS.target  # [n 8 8], values 0 to 240
COUNT = 320  # training images: five steps per epoch


def arrays(images=IMAGES):
    return mp.data.from_arrays(
        images[:COUNT], LABELS[:COUNT], images[COUNT : COUNT + 100], LABELS[COUNT : COUNT + 100]
    )


def config(**changes):
    found = default_config()
    found.update_from_flattened_dict(
        {
            "train_for": "4 epochs",
            "batch_size": 64,
            "schedule.learning_rate": 0.05,
            "tensorboard": "off",
            "optimizer.weight_decay": 0.0,
        }
        | changes
    )
    return found


class Plain(nn.Module):
    """A network in a user's style: no argument `train`, no names of layers."""

    @nn.compact
    def __call__(self, x):
        xs = mp.layers.OneToMany(2)(x)
        xs = mp.layers.Parallel(nn.Conv(8, (3, 3)))(xs)
        xs = mp.layers.CrossConnect(2)(nn.relu(xs))
        return nn.Dense(10)(xs.mean(0).reshape(len(x), -1))


class WithDropout(nn.Module):
    """A network with dropout, BatchNorm, and a custom collection."""

    @nn.compact
    def __call__(self, x, train=False):
        calls = self.variable("counts", "calls", lambda: jnp.int32(0))
        if train:
            calls.value += 1
        x = nn.BatchNorm(use_running_average=not train)(x.reshape(len(x), -1))
        x = nn.Dropout(0.2, deterministic=not train)(nn.relu(nn.Dense(32)(x)))
        return nn.Dense(10)(x)


class InNNX(nnx.Module):
    """An NNX module with a router, dropout and BatchNorm."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.router = nnx.bridge.ToNNX(mp.layers.CrossConnect(2), rngs=rngs)
        self.router.lazy_init(jnp.zeros((2, 1, 8, 8, 8)))
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.out = nnx.Linear(2 * 8 * 8 * 8, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x)))
        x = jnp.concatenate(self.router(jnp.stack([x, -x])), axis=-1)
        return self.out(self.dropout(x.reshape(len(x), -1)))


MODELS = {
    "plain": Plain,
    "with dropout": WithDropout,
    "NNX": lambda: InNNX(nnx.Rngs(0)),
}


@pytest.mark.parametrize(
    "kind",
    [*(pytest.param(k, marks=pytest.mark.slow) for k in ("plain", "with dropout")), "NNX"],
)
def test_a_network_of_ones_own_trains_resumes_and_is_loaded(kind, tmp_path):
    def trainer(**options):
        return mp.Trainer(config(), model=MODELS[kind](), dataset=arrays(), **options)

    seen = []
    whole = trainer(hooks=[lambda step, metrics: seen.append((step, metrics))])
    assert whole.evaluate()["error"] > 60  # initial weights; chance level is 90
    result = whole.fit(tmp_path / "whole")
    assert result.finished
    assert result.test["error"] < 40  # chance level is 90
    assert whole.evaluate() == result.test
    assert [step for step, _ in seen] == [5, 10, 15, 20]
    assert seen[-1][1]["test/error"] == result.test["error"]

    # Training in three parts, the last by another Trainer, gives bitwise the same result.
    assert whole.fit(tmp_path / "parts", until="1 epoch").step == 5
    assert whole.fit(tmp_path / "parts", until="7 steps").test["error"] <= 100
    assert trainer().fit(tmp_path / "parts").test == result.test

    run = mp.load_run(tmp_path / "parts", "latest", model=MODELS[kind](), dataset=arrays())
    assert run.evaluate() == pytest.approx(result.test, rel=1e-5)
    wrong = np.argmax(run.logits(run.test().images), -1) != run.test().labels
    assert 100 * wrong.mean() == pytest.approx(result.test["error"])


class Flat(nn.Module):
    """A dense layer on the pixels."""

    features: int = 10

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.features)(x.reshape(len(x), -1))


class WithLoss(Flat):
    def loss(self, images, labels, train):
        return self(images), jnp.full(len(images), 7.0 if train else 0.0)


class InNNXWithLoss(nnx.Module):
    def __init__(self):
        self.out = nnx.Linear(64, 10, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.out(x.reshape(len(x), -1))

    def loss(self, images, labels, train):
        return self(images), jnp.full(len(images), 7.0 if train else 0.0)


@pytest.mark.parametrize("kind", [WithLoss, InNNXWithLoss])
def test_a_network_without_modes_keeps_its_own_loss(kind, tmp_path):
    seen = []
    recipe = config(train_for="1 epoch")
    hooks = [lambda step, metrics: seen.append(metrics["train/loss"])]
    mp.Trainer(recipe, model=kind(), dataset=arrays(), hooks=hooks).fit(tmp_path)
    assert seen == [7.0]


def test_a_sequential_network_trains(tmp_path):
    model = nn.Sequential([lambda x: x.reshape(len(x), -1), nn.Dense(10)])
    mp.Trainer(config(), model=model, dataset=arrays()).fit(tmp_path, until="1 steps")
    assert mp.load_run(tmp_path, "latest", model=model).logits(IMAGES[:2, ..., None]).shape == (
        2,
        10,
    )


class Broken(nn.Module):
    output: Any

    @nn.compact
    def __call__(self, x, train=False):
        return self.output(nn.Dense(10)(x))


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (Flat(5), r"\[64, 5\]"),
        (Broken(lambda x: x), r"\[64, 8, 8, 10\]"),
        (Broken(lambda x: (x.mean((1, 2)), x)), "a tuple"),
    ],
)
def test_an_output_that_does_not_fit_is_refused(model, found):
    message = rf"the network returns {found} for 64 images; the data have 10 classes: return logits"
    with pytest.raises(UserError, match=message):
        mp.Trainer(config(), model=model, dataset=arrays())


class Sowing(nn.Module):
    @nn.compact
    def __call__(self, x):
        self.sow("norms", "input", jnp.linalg.norm(x))
        return Flat()(x)


def test_sowing_into_another_collection_is_refused(tmp_path):
    trainer = mp.Trainer(config(), model=Sowing(), dataset=arrays())
    with pytest.raises(
        UserError, match=r"collection norms .* sow into the collection intermediates"
    ):
        trainer.fit(tmp_path)


class Partitioned(nn.Module):
    @nn.compact
    def __call__(self, x):
        init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
        return nn.Dense(10, kernel_init=init)(x.reshape(len(x), -1))


def test_parameters_with_partitions_train(tmp_path):
    recipe = config(**{"finetune.layer_decay": 0.5})
    mp.Trainer(recipe, model=Partitioned(), dataset=arrays()).fit(tmp_path, until="1 steps")
    run = mp.load_run(tmp_path, "latest", model=Partitioned())
    assert run.variables["params"]["Dense_0"]["kernel"].shape == (64, 10)


def test_a_run_that_is_already_there_is_evaluated(tmp_path):
    def fit():
        trainer = mp.Trainer(config(), model=Flat(), dataset=arrays())
        return trainer.fit(tmp_path, until="1 epoch")

    assert fit().test == fit().test != {}


def test_all_collections_travel(tmp_path):
    mp.Trainer(config(), model=WithDropout(), dataset=arrays()).fit(tmp_path, until="7 steps")
    run = mp.load_run(tmp_path, "latest", model=WithDropout())
    assert run.variables["counts"]["calls"] == 7
    assert np.abs(run.variables["batch_stats"]["BatchNorm_0"]["mean"]).max() > 0


def test_a_run_by_a_config_alone_is_that_of_main(tmp_path, data_dir, monkeypatch):
    named = Family("Named", lambda num_classes: WithDropout(), ())
    monkeypatch.setattr(registry, "FAMILIES", (named, *registry.FAMILIES))
    recipe = config(
        **{"dataset.data_dir": str(data_dir), "train_for": "2 steps", "model.name": "Named"}
    )
    trained = mp.Trainer(recipe).fit(tmp_path / "a")
    from multipath_jax.trainer import train

    assert train(recipe, tmp_path / "b").test == trained.test
    for name in ("config.json", "dataset.json"):
        assert (tmp_path / "a" / name).read_text() == (tmp_path / "b" / name).read_text()


def updates(workdir, *steps, recipe=None, **options):
    """Yields the parameters after each number of steps in ``steps``."""
    trainer = mp.Trainer(recipe or config(), model=Plain(), dataset=arrays(), **options)
    for count in steps:
        trainer.fit(workdir, until=f"{count} steps")
        yield mp.load_run(workdir, "latest", model=Plain()).variables["params"]


def test_an_optimizer_of_ones_own(tmp_path):
    one, two = updates(tmp_path, 1, 2, optimizer=optax.sign_sgd(0.25))
    change = np.unique(np.abs(np.asarray(two["Dense_0"]["bias"] - one["Dense_0"]["bias"])))
    np.testing.assert_allclose(change, [0.25])
    line = (tmp_path / "metrics.jsonl").read_text()
    assert "learning_rate" not in line


def test_an_optimizer_may_take_the_loss(tmp_path):
    def update(grads, state, params=None, *, value):
        return jax.tree.map(lambda grad: jnp.full_like(grad, value), grads), state

    def three(outputs, labels):
        return jnp.full(len(labels), 3.0)

    optimizer = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    trainer = mp.Trainer(
        config(), model=Flat(), dataset=arrays(), optimizer=optimizer, loss_fn=three
    )
    trainer.fit(tmp_path, until="1 steps")
    params = mp.load_run(tmp_path, "latest", model=Flat()).variables["params"]
    np.testing.assert_array_equal(params["Dense_0"]["bias"], 3)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (optax.lbfgs(), "the optimizer fails .* 'value_fn'; use another one"),
        (optax.noisy_sgd(0.1, key=jax.random.key(0)), "the optimizer has a random key"),
    ],
)
def test_an_optimizer_that_cannot_be_used_is_refused(optimizer, message, tmp_path):
    trainer = mp.Trainer(config(), model=Flat(), dataset=arrays(), optimizer=optimizer)
    with pytest.raises(UserError, match=message):
        trainer.fit(tmp_path)


def test_an_optimizer_by_its_name_follows_the_schedule(tmp_path):
    recipe = config(
        **{
            "optimizer.name": "lion",
            "schedule.learning_rate": 0.5,
            "schedule.boundaries": "1 steps",
        }
    )
    one, two = updates(tmp_path, 1, 2, recipe=recipe)
    change = np.abs(np.asarray(two["Dense_0"]["bias"] - one["Dense_0"]["bias"]))
    np.testing.assert_allclose(change, 0.05, rtol=1e-4)  # Lion's steps have the size of the rate


def test_a_loss_of_ones_own(tmp_path):
    def first_logit(outputs, labels):
        return outputs[:, 0] * (labels == 0)

    (params,) = updates(tmp_path, 3, loss_fn=first_logit)
    bias = params["Dense_0"]["bias"]
    assert bias[0] < 0
    np.testing.assert_array_equal(bias[1:], 0)


def test_floats_are_normalized_as_they_are(tmp_path):
    """The same images with another type and scale give the same training."""
    recipe = config(**{"dataset.shift": 1, "dataset.cutout": 2, "train_for": "1 epoch"})
    tests = [
        mp.Trainer(recipe, model=Plain(), dataset=arrays(images)).fit(tmp_path / name).test
        for name, images in (("bytes", IMAGES), ("floats", IMAGES.astype(np.float64) / 25.5 - 3))
    ]
    # Normalized pixels differ by rounding, and therefore also the losses after five steps.
    assert tests[0]["loss"] == pytest.approx(tests[1]["loss"], rel=1e-3)
    run = mp.load_run(tmp_path / "floats", model=Plain())
    assert run.description.dtype == "float32"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": IMAGES[0]}, r"x must be images \[n h w c\] or \[n h w\], got shape \(8, 8\)"),
        ({"x": IMAGES.astype(int)}, "x must be uint8 or a floating-point type, got int64"),
        ({"x_test": IMAGES[:, :7]}, r"x has images of shape \(8, 8, 1\), x_test of shape \(7"),
        ({"x_test": IMAGES / 2}, "x has images of type uint8, x_test of type float32"),
        ({"x": np.where(IMAGES, np.nan, 1.0)}, "x has values that are not finite"),
        ({"y": LABELS[:-1]}, r"y must be 1797 integers, .* got shape \(1796,\)"),
        ({"y": LABELS / 1}, "y must be 1797 integers, .* of type float64"),
        ({"y": LABELS - 1}, "y has the label -1; classes are numbered from 0"),
        ({"y": LABELS + 2**32}, r"y has the label \d{10}, of more than 1,000,000 classes; number"),
        ({"class_names": ["a", "b"]}, "class_names needs 10 or more different names"),
        ({"x": [[1, 2], [3]]}, "x must be an array, with rows of one length"),
        ({"y": [[1, 2], [3]]}, "y must be an array, with rows of one length"),
        ({"x": IMAGES * 1e38}, "x has values that are too large for float32; scale them"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change, message):
    given = {"x": IMAGES, "y": LABELS, "x_test": IMAGES, "y_test": LABELS} | change
    with pytest.raises(UserError, match=message):
        mp.data.from_arrays(**given)


def test_arrays_of_other_libraries_and_types():
    names = np.array(list("abcdefghij"))
    images = jnp.asarray(IMAGES, jnp.bfloat16)
    found = mp.data.from_arrays(images, LABELS, images, LABELS, class_names=names)
    assert found.class_names == tuple("abcdefghij")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.train.images[..., 0], np.asarray(images, np.float32))


def test_trivial_augment_of_floats_is_refused():
    recipe = config(**{"dataset.trivial_augment": True})
    with pytest.raises(UserError, match=r"dataset.trivial_augment=True needs uint8 pixels"):
        mp.Trainer(recipe, model=Flat(), dataset=arrays(IMAGES / 255))


@pytest.mark.parametrize(
    ("changes", "given", "message"),
    [
        ({}, {"model": Plain}, "must be an instance .not a class."),
        (
            {"model.options": "depth=3"},
            {"model": Plain()},
            "model.options=depth=3 cannot be used with model=",
        ),
        (
            {"dtype": "bfloat16"},
            {"model": Plain()},
            "dtype=bfloat16 cannot be used with model=",
        ),
        ({"dataset.holdout": 9}, {}, "dataset.holdout=9 cannot be used with dataset="),
        ({"dataset.size": 36}, {}, "dataset.size=36 does not rescale the images .* of 8x8x1; use"),
        ({"trials": 3}, {}, "trials=3: a Trainer trains one run; .*train_trials.config, workdir"),
        ({"loss": "own:zero"}, {}, r"loss=own:zero needs that function, as Trainer.loss_fn="),
        ({"loss": "focal"}, {"model": WithLoss()}, "loss=focal needs that function"),
        ({"label_smoothing": 0.1}, {"loss_fn": lambda o, y: o[:, 0]}, "loss_fn is given"),
        ({"mesh.path": 2}, {"model": Plain()}, "own:Plain has no paths that can be sharded"),
    ],
)
def test_what_does_not_go_together_is_refused(changes, given, message):
    with pytest.raises(UserError, match=message):
        mp.Trainer(config(**changes), dataset=arrays(), **given)


def test_a_run_is_refused_while_the_script_is_imported(tmp_path, monkeypatch):
    trainer = mp.Trainer(config(), model=Flat(), dataset=arrays(), hooks=None)
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(UserError, match="runs the whole script again"):
        trainer.fit(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_workdir_of_another_network_is_refused(tmp_path):
    mp.Trainer(config(), model=Plain(), dataset=arrays()).fit(tmp_path, until="1 steps")
    with pytest.raises(UserError, match=r"another config \(model.name: 'own:Plain' -> 'own:With"):
        mp.Trainer(config(), model=WithDropout(), dataset=arrays()).fit(tmp_path)
    with pytest.raises(UserError, match="Plain, was passed to Trainer"):
        mp.load_run(tmp_path)
    with pytest.raises(UserError, match="WithDropout is not the network that was trained"):
        mp.load_run(tmp_path, model=WithDropout())
    with pytest.raises(UserError, match="were passed to Trainer"):
        mp.load_run(tmp_path, model=Plain()).evaluate()
    with pytest.raises(UserError, match="dtype=bfloat16 cannot be used with model="):
        mp.load_run(tmp_path, model=Plain(), dtype="bfloat16")


def test_what_the_package_says_of_itself():
    assert mp.__version__.count(".") == 2
    assert {"Trainer", "data", "load_run", "recipes"} <= set(mp.__all__)
    assert mp.recipes.cifar("BaseCNN-2-CC").model.name == "BaseCNN-2-CC"
    with pytest.raises(AttributeError, match="no attribute 'Trianer'"):
        _ = mp.Trianer
