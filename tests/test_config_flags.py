"""The recipes in ``configs/``."""

import importlib.util

import jax
import pytest

from multipath_jax import compile_tpu, create_model, list_models
from multipath_jax.config import flags as config_flags
from multipath_jax.config import keys as config_lib
from multipath_jax.config.schedule import make_plan
from multipath_jax.errors import UserError
from multipath_jax.models import paper
from multipath_jax.models.capsnet import CapsNet
from multipath_jax.models.ensemble import Ensemble
from multipath_jax.training.setup import make_model

FOLDER = config_flags.folder()


def recipe(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config


def test_digits():
    config = recipe("digits")()
    config_lib.validate(config)
    assert (config.model.name, config.dataset.name) == ("BaseCNN-2-CC", "digits")
    assert not config.dataset.flip  # a mirrored 2 is not a 2
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
    assert config.schedule.boundaries == drops
    assert config.optimizer.weight_decay == decay
    assert config.dataset.name == dataset
    assert (config.dataset.shift, config.dataset.flip) == (4, True)
    assert (config.schedule.learning_rate, config.schedule.factor) == (0.1, 0.1)
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


@pytest.mark.parametrize("name", list_models())
def test_every_network_has_a_fast_recipe(name):
    config = recipe("cifar_fast")(name)
    config_lib.validate(config)
    make_plan(config, 390)
    assert config.model.name == name
    assert config.model.options == ""  # the network of the paper, unchanged
    assert int(config.train_for.split()[0]) <= 30


def test_the_fast_recipe_smooths_no_labels_of_networks_that_refuse_it():
    for name in list_models():
        refuses = isinstance(create_model(name), (Ensemble, CapsNet))
        assert (recipe("cifar_fast")(name).label_smoothing == 0) == refuses


@pytest.mark.parametrize(
    "arguments",
    [
        "BaseCNN,epochs=0",
        "BaseCNN,epochs=x",
        "BaseCNN,dataset=mnist",
        "BaseCNN,epoch=9",
        "BaseCNN,,",
    ],
)
def test_unknown_options_of_the_fast_recipe_are_refused(arguments):
    with pytest.raises(UserError):
        recipe("cifar_fast")(arguments)
    config = recipe("cifar_fast")("ResNet20,epochs=9,dataset=cifar100")
    assert (config.train_for, config.dataset.name) == ("9 epochs", "cifar100")


KEY = jax.random.key(0)
TABLE_4 = {row.model: row for row in paper.rows(4)}


def imagenet(row):
    return recipe("imagenet")(f"{row.model}{',subset' * (row.num_classes == 100)}")


def test_the_papers_protocol_on_imagenet():
    """Section 6.4: 120 epochs, or 90 on the subset; the rate is divided by 10 every 30 epochs."""
    config = recipe("imagenet_r18_2cc")()
    assert config == recipe("imagenet")("ResNet18-2-CC") == recipe("imagenet")()
    assert (config.batch_size, config.train_for) == (256, "120 epochs")
    assert config.schedule.boundaries == "30 epochs, 60 epochs, 90 epochs"
    assert (config.schedule.learning_rate, config.schedule.factor) == (0.1, 0.1)
    assert (config.optimizer.momentum, config.optimizer.weight_decay) == (0.9, 1e-4)
    data = config.dataset
    assert (data.name, data.size, data.crop, data.flip) == ("imagenet256", 256, 224, True)
    assert data.ten_crop
    subset = recipe("imagenet")("ResNet50-2-CC,subset")
    assert (subset.dataset.name, subset.train_for) == ("imagenet256/subset100", "90 epochs")
    assert subset.schedule.boundaries == "30 epochs, 60 epochs"


def test_the_papers_recipes_use_nothing_beyond_the_paper():
    for config in (recipe("imagenet")(), recipe("imagenet")("ResNet50,subset"), recipe("cifar")()):
        assert (config.schedule.kind, config.schedule.warmup) == ("step", "")
        assert (config.label_smoothing, config.ema, config.accumulate) == (0, 0, 1)
        assert (config.mixup, config.cutmix, config.optimizer.nesterov) == (0, 0, False)
        data = config.dataset
        assert (data.shift_mode, data.cutout, data.erase, data.holdout) == ("zeros", 0, 0, 0)
        others = data.alternate_flip, data.trivial_augment, data.eval_flip
        assert others == (False, False, False)


@pytest.mark.parametrize("name", TABLE_4)
def test_the_networks_of_table_4_are_trained_as_the_table_counts_them(name):
    """Recipes have the classes and image sizes for which `test_paper` counts the parameters."""
    row = TABLE_4[name]
    config = imagenet(row)
    config_lib.validate(config)
    make_plan(config, 5004)
    classes = compile_tpu.described(config.dataset.name).num_classes
    crop = config.dataset.crop
    assert (config.model.name, classes, (crop, crop, 3)) == (name, row.num_classes, row.image_shape)
    assert create_model(name, classes) is not None


@pytest.mark.slow  # test_paper checks the sizes as well
@pytest.mark.parametrize("name", ["ResNet18-2-CC", "ResNet50-2-CC"])
def test_the_routed_networks_have_the_papers_sizes_by_their_recipes(name):
    config = imagenet(TABLE_4[name])
    crop, dataset = config.dataset.crop, compile_tpu.described(config.dataset.name)
    model = make_model(config, dataset.num_classes)
    images = jax.ShapeDtypeStruct((2, crop, crop, 3), "float32")
    logits, variables = jax.eval_shape(lambda x: model.init_with_output(KEY, x), images)
    assert logits.shape == (2, dataset.num_classes)
    millions = sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) / 1e6
    assert millions == pytest.approx(TABLE_4[name].params, abs=TABLE_4[name].tolerance)


@pytest.mark.parametrize("name", list_models())
def test_every_network_has_a_recipe_for_a_folder(name):
    config = recipe("folder")(name)
    config.dataset.source = "photos"
    config_lib.validate(config)
    make_plan(config, 10)
    assert config.dataset.crop < config.dataset.size <= 256
    assert config.model.name == name


@pytest.mark.parametrize(
    "name",
    [
        "BaseCNN-2-CC",
        "VGG13-2-CC",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("CapsNet", "VGG16", "ResNet34")),
    ],
)
def test_networks_take_the_crops_of_a_folder(name):
    config = recipe("folder")(name)
    crop, model = config.dataset.crop, create_model(name, 7)
    images = jax.ShapeDtypeStruct((2, crop, crop, 3), "float32")
    logits, _ = jax.eval_shape(lambda x: model.init_with_output(KEY, x), images)
    assert logits.shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("imagenet", "ResNet18,", "is not of the form ``NAME`` or ``NAME,subset``"),
        ("imagenet", "ResNet18,epochs=90", "is not of the form ``NAME`` or ``NAME,subset``"),
        ("folder", "ResNet18-2-CD", "did you mean"),
    ],
)
def test_what_is_no_recipe_is_refused(name, arguments, message):
    with pytest.raises(UserError, match=message):
        recipe(name)(arguments)
