"""The files in ``configs/``."""

import importlib.util
import pathlib

import pytest

from multipath_jax import create_model, list_models
from multipath_jax.errors import UserError
from multipath_jax.training import config as config_lib
from multipath_jax.training.schedule import make_plan

FOLDER = pathlib.Path(__file__).parents[2] / "configs"


def recipe(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config


def test_digits():
    config = recipe("digits")()
    config_lib.validate(config)
    assert (config.model.name, config.dataset.name) == ("BaseCNN-2-CC", "digits")
    assert not config.dataset.flip  # a mirrored 2 is no 2
    make_plan(config, 22)


@pytest.mark.parametrize(
    ("arguments", "batch", "duration", "drops", "decay", "dataset"),
    [
        ("BaseCNN-2-CC", 128, "200 epochs", "80 epochs, 150 epochs", 5e-4, "cifar10"),
        ("BaseCNN-3-CP,epochs=350", 128, "350 epochs", "150 epochs, 250 epochs", 5e-4, "cifar10"),
        ("ResNet20-3-CC", 64, "350 epochs", "150 epochs, 250 epochs", 1e-4, "cifar10"),
        (
            "SEResNet110,dataset=cifar100",
            64,
            "350 epochs",
            "150 epochs, 250 epochs",
            1e-4,
            "cifar100",
        ),
        ("WRN-40-2", 64, "350 epochs", "150 epochs, 250 epochs", 1e-4, "cifar10"),
        ("SEBaseCNN", 128, "200 epochs", "80 epochs, 150 epochs", 5e-4, "cifar10"),
    ],
)
def test_the_papers_protocols(arguments, batch, duration, drops, decay, dataset):
    config = recipe("cifar")(arguments)
    assert config.batch_size == batch
    assert config.train_for == duration
    assert config.schedule.drops == drops
    assert config.optimizer.weight_decay == decay
    assert config.dataset.name == dataset
    assert (config.dataset.shift, config.dataset.flip) == (4, True)
    assert (config.schedule.rate, config.schedule.factor) == (0.1, 0.1)
    assert config.optimizer.momentum == 0.9


@pytest.mark.parametrize("name", list_models())
def test_every_network_has_a_recipe(name):
    config = recipe("cifar")(name)
    config_lib.validate(config)
    make_plan(config, 390)
    assert create_model(config.model.name) is not None


@pytest.mark.parametrize(
    "arguments", ["BaseCNN,epochs=7", "BaseCNN,dataset=mnist", "BaseCNN,epoch=200", "BaseCNN,,"]
)
def test_unknown_options_are_refused(arguments):
    with pytest.raises(UserError):
        recipe("cifar")(arguments)
