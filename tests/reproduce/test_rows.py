"""Tests of the selection of rows, and of the recipes by which they are trained."""

import pytest

from multipath_jax import recipes
from multipath_jax.config import keys as config_lib
from multipath_jax.config.schedule import parse_duration
from multipath_jax.errors import UserError
from multipath_jax.models import paper
from multipath_jax.reproduce import tables


def row(model):
    return paper.rows(model=model)[0]


def names(pairs):
    return [(row.model, column) for row, column in pairs]


def test_cifar10_comes_before_all_other_columns():
    pairs = names(tables.select(2))
    assert pairs[:20] == [(row.model, "cifar10") for row in paper.rows(2)]
    routed = [f"BaseCNN-{m}-{kind}" for kind in ("CP", "CC") for m in (2, 3, 4)]
    assert pairs[20:] == [(name, "cifar10_350") for name in routed]
    columns = [column for _, column in names(tables.select(3))]
    assert columns == ["cifar10"] * 19 + ["cifar100"] * 15


def test_rows_are_picked_by_network_model_or_column_in_the_order_asked():
    picked = names(tables.select(2, ["BaseCNN-2-CC", "BaseCNN Ensemble", "VGG16", "VGG16"]))
    assert picked == [
        ("BaseCNN-2-CC", "cifar10"),
        ("BaseCNN-Ensemble", "cifar10"),
        ("VGG16", "cifar10"),
        ("BaseCNN-2-CC", "cifar10_350"),
    ]
    assert names(tables.select(3, ["ResNet110:cifar100"])) == [("ResNet110", "cifar100")]
    assert names(tables.select(2, ["CapsNet"])) == [("CapsNet", "cifar10")]  # quoted, but trained


def test_networks_that_are_not_in_the_paper_are_trained_by_its_recipe():
    pairs = tables.select(2, ["BaseCNN-2", "BaseCNN", "BaseCNN-2:cifar100"])
    assert names(pairs) == [
        ("BaseCNN-2", "cifar10"),
        ("BaseCNN", "cifar10"),
        ("BaseCNN-2", "cifar100"),
    ]
    assert pairs[0][0] is pairs[2][0]  # rows are compared by identity
    ours = tables.campaign(*pairs[0], {})
    assert ours.config == recipes.cifar("BaseCNN-2")
    assert ours.folder == "cifar10/BaseCNN-2"


@pytest.mark.parametrize(
    ("table", "name", "message"),
    [
        (2, "BaseCNN-2-CD", "the nearest is BaseCNN-2-C"),
        (2, "ResNet20", "a row of table3"),
        (2, "BaseCNN:cifar100", "is trained for cifar10, not for"),
        (4, "ResNet18:top1", "is trained for imagenet, not for"),
        (4, "BaseCNN-2", "table4 has no row 'BaseCNN-2'"),
        (2, "ResNet18-3-CC", "table2 has no row"),
        (2, "BaseCNN-2:cifar10_350", "is trained for cifar10, cifar100, not for"),
    ],
)
def test_a_row_that_cannot_be_trained_is_refused(table, name, message):
    with pytest.raises(UserError, match=message):
        tables.select(table, [name])


def test_one_run_gives_all_columns_of_table_4():
    pairs = tables.select(4)
    assert names(pairs) == [(row.model, "imagenet") for row in paper.rows(4)]
    assert {tables.run_of(column) for row, _ in pairs for column in row.errors} == {"imagenet"}
    assert names(tables.select(4, ["ResNet18:imagenet"])) == [("ResNet18", "imagenet")]


@pytest.mark.parametrize("model", [row.model for row in paper.rows(4)])
def test_table_4_is_trained_on_as_many_classes_as_its_rows_say(model):
    campaign = tables.campaign(row(model), "imagenet", {})
    data, epochs = {
        1000: ("imagenet256", "120 epochs"),
        100: ("imagenet256/subset100", "90 epochs"),
    }[row(model).num_classes]
    assert (campaign.config.dataset.name, campaign.config.train_for) == (data, epochs)
    assert campaign.folder == f"imagenet/{model}"
    assert campaign.name.endswith(", ImageNet")
    assert campaign.trial(0)["changed"] == {}
    assert not tables.is_shortened(row(model), "imagenet", campaign.config.train_for)


@pytest.mark.parametrize(
    ("model", "column", "epochs", "folder", "train_for", "drops"),
    [
        ("BaseCNN", "cifar10", None, "cifar10", "200 epochs", "80 epochs, 150 epochs"),
        ("BaseCNN", "cifar10", 200.0, "cifar10", "200 epochs", "80 epochs, 150 epochs"),
        ("BaseCNN", "cifar10", 20.0, "cifar10-20epochs", "20 epochs", "8 epochs, 15 epochs"),
        (
            "BaseCNN-2-CC",
            "cifar10_350",
            7.0,
            "cifar10_350-7epochs",
            "7 epochs",
            "3 epochs, 5 epochs",
        ),
        (
            "ResNet110",
            "cifar100",
            0.7,
            "cifar100-0.7epochs",
            "0.7 epochs",
            "0.3 epochs, 0.5 epochs",
        ),
    ],
)
def test_a_campaign_trains_by_the_recipe_or_a_shorter_one(
    model, column, epochs, folder, train_for, drops
):
    campaign = tables.campaign(row(model), column, {}, epochs)
    assert campaign.folder == f"{folder}/{model}"
    assert (campaign.config.train_for, campaign.config.schedule.boundaries) == (train_for, drops)
    assert campaign.config.dataset.name == ("cifar100" if column == "cifar100" else "cifar10")
    assert campaign.trial(0)["changed"] == {}
    assert tables.is_shortened(row(model), column, train_for) == (epochs not in (None, 200))


@pytest.mark.parametrize(
    ("key", "text", "value", "altered"),
    [
        ("batch_size", "64", 64, True),
        ("optimizer.weight_decay", "1e-4", 1e-4, True),
        ("dataset.flip", "False", False, True),
        ("model.options", "execution=grouped", "execution=grouped", True),
        ("init_from", "elsewhere", "elsewhere", True),  # free when a run resumes, but not here
        ("init_partial", "True", True, True),
        ("growth_noise", "0.2", 0.2, True),
        ("schedule.boundaries", "90 epochs", "90 epochs", True),
        ("dtype", "bfloat16", "bfloat16", False),
        ("dispatch", "step", "step", False),
        ("dataset.data_dir", "/data", "/data", False),
    ],
)
@pytest.mark.parametrize("epochs", [None, 20.0])
def test_what_alters_a_trial_is_marked_and_kept_apart(key, text, value, altered, epochs):
    changed = tables.campaign(row("BaseCNN"), "cifar10", {key: text}, epochs)
    plain = tables.campaign(row("BaseCNN"), "cifar10", {}, epochs)
    assert config_lib.flatten(changed.config)[key] == value
    found = changed.trial(0)["changed"]
    assert tables.altering(found) == [key] * altered
    # Another type of the computation is the same recipe, but another trial.
    assert found == ({key: value} if altered or key == "dtype" else {})
    assert (changed.folder != plain.folder) == altered


def test_steps_are_a_shorter_training():
    changes = {"train_for": "3 steps", "schedule.boundaries": ""}
    trial = tables.campaign(row("BaseCNN"), "cifar10", changes).trial(0)
    assert tables.is_shortened(row("BaseCNN"), "cifar10", trial["train_for"])
    assert trial["changed"] == {"schedule.boundaries": ""}


@pytest.mark.parametrize("epochs", [0.0, -1.0, 201.0, float("nan")])
def test_epochs_only_shorten(epochs):
    with pytest.raises(UserError, match="recipe's 200"):
        tables.campaign(row("BaseCNN"), "cifar10", {}, epochs)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("batch", "KEY=VALUE"),
        ("seed=3", "--trials"),
        ("train_for=2 epochs", "--epochs"),
        ("bach_size=3", "'batch_size'"),
        ("batch_size=many", "of type int"),
        ("dataset.flip=yes", "of type bool"),
        ("batch_size=0", "at least 1"),
        ("patience=5 epochs", "errors at the end of training"),
        ("dataset.name=cifar10+digits", "the tables are of one data set"),
    ],
)
def test_a_change_that_cannot_be_is_refused(item, message):
    with pytest.raises(UserError, match=message):
        tables.campaign(row("BaseCNN"), "cifar10", tables.parse_changes([item]))


def test_a_folder_of_images_is_refused():
    changes = {"dataset.source": "/images", "dataset.size": "32"}
    with pytest.raises(UserError, match=r"dataset\.source: the tables are of prepared"):
        tables.campaign(row("BaseCNN"), "cifar10", changes)


def test_our_recipe_is_of_cifar_and_kept_apart():
    ours = tables.campaign(row("BaseCNN-2-CC"), "cifar10", {}, name="fast")
    theirs = tables.campaign(row("BaseCNN-2-CC"), "cifar10", {})
    assert ours.config == recipes.fast("BaseCNN-2-CC")
    assert (ours.folder, theirs.folder) == ("fast/cifar10/BaseCNN-2-CC", "cifar10/BaseCNN-2-CC")
    assert (ours.name, theirs.name) == (
        "BaseCNN-2-CC, CIFAR-10, fast recipe",
        "BaseCNN-2-CC, CIFAR-10",
    )
    assert ours.trial(0) != theirs.trial(0)
    assert ours.trial(0)["changed"] == {}
    assert {column for _, column in tables.select(2, (), "fast")} == {"cifar10"}
    assert {column for _, column in tables.select(3, (), "fast")} == {"cifar10", "cifar100"}


def test_a_shorter_run_of_our_recipe_warms_up_shorter():
    whole = recipes.fast("BaseCNN")
    short = tables.campaign(row("BaseCNN"), "cifar10", {}, 3.0, "fast")
    warm_up, total = (
        parse_duration(key, text).number
        for key, text in (("", whole.schedule.warmup), ("", whole.train_for))
    )
    assert short.config.schedule.warmup == f"{3 * warm_up / total:g} epochs"
    assert (short.trial(0)["train_for"], short.trial(0)["changed"]) == ("3 epochs", {})
    assert short.folder == "fast/cifar10-3epochs/BaseCNN"
