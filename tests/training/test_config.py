import pathlib
import re

import pytest

import multipath_jax
from multipath_jax.config import keys as config_lib
from multipath_jax.config.keys import default_config
from multipath_jax.errors import UserError


def changed(**changes):
    config = default_config()
    config.update_from_flattened_dict(changes)
    return config


def test_the_defaults_are_valid_and_locked():
    config = default_config()
    config_lib.validate(config)
    with pytest.raises(AttributeError):
        config.schedule.lerning_rate = 1.0


def test_every_key_is_read_by_something():
    package = pathlib.Path(multipath_jax.__file__).parent
    own = package / "config" / "keys.py"
    assert own.exists()
    sources = "".join(path.read_text() for path in package.rglob("*.py") if path != own)
    for key in config_lib.flatten(default_config()):
        name = key.rpartition(".")[-1]
        pattern = rf"config(\.\w+)*\.{name}\b|steps\(\"{name}\"\)|\"{name}\""
        assert re.search(pattern, sources), f"nothing reads {key}"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("batch_size", 0, "at least 1"),
        ("batch_size", -64, "at least 1"),
        ("eval_batch_size", 0, "at least 1"),
        ("seed", -1, "from 0"),
        ("seed", 2**32, "from 0"),
        ("init_from", "torchvision://resnet18", "no access to torchvision://"),
        ("dataset.data_dir", "hf://a/b", "no access to hf://"),
        ("dataset.source", "gs://a/b", "must be a path on this machine"),
        ("compilation_cache", "ftp://a", "no access to ftp://"),
        ("dataset.mean", "0.5", "1 numbers and dataset.std 0"),
        ("dataset.std", "1, a", "is not of the form"),
        ("dataset.shift", -1, "at least 0"),
        ("dataset.size", -1, "at least 0"),
        ("dataset.crop", -224, "at least 0"),
        ("dataset.workers", -1, "at least 0"),
        ("dataset.cutout", -1, "at least 0"),
        ("dataset.holdout", -1, "at least 0"),
        ("dataset.shift_mode", "wrap", "one of zeros, reflect"),
        ("dataset.alternate_flip", True, "needs dataset.flip"),
        ("dataset.erase", 1.5, "from 0 to 1"),
        ("mixup", -0.2, "at least 0"),
        ("cutmix", float("nan"), "at least 0"),
        ("dataset.source", "photos", "needs dataset.size"),
        ("dataset.ten_crop", True, "needs dataset.crop"),
        ("dtype", "float16", "one of auto, float32, bfloat16"),
        ("dispatch", "scan", "one of"),
        ("trials", 0, "at least 1"),
        ("profile", "100", "write '100-110'"),
        ("profile", "110-100", "write '100-110'"),
        ("tensorboard", "yes", "one of"),
        ("schedule.learning_rate", 0.0, "positive"),
        ("schedule.learning_rate", float("nan"), "positive"),
        ("schedule.factor", -0.1, "positive"),
        ("optimizer.momentum", 1.0, "below 1"),
        ("optimizer.weight_decay", -1e-4, "at least 0"),
        ("train_for", "0 epochs", "is not a duration"),
        ("log_every", "often", "is not a duration"),
        ("schedule.boundaries", "80 epochs 150 epochs", "is not a list of durations"),
        ("model.options", "execution", "name=value"),
        ("schedule.kind", "square", "one of step, cosine, linear"),
        ("schedule.warmup", "5", "is not a duration"),
        ("schedule.warmup", "1 epoch, 2 epochs", "is not a duration"),
        ("label_smoothing", 1.0, "below 1"),
        ("label_smoothing", -0.1, "at least 0"),
        ("ema", 1.0, "below 1"),
        ("ema", float("nan"), "at least 0"),
        ("accumulate", 0, "at least 1"),
    ],
)
def test_bad_values_are_refused_by_name(key, value, message):
    with pytest.raises(UserError, match=message) as caught:
        config_lib.validate(changed(**{key: value}))
    assert key in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_what_falls_to_zero_has_no_boundaries(kind):
    with pytest.raises(
        UserError, match=rf"schedule.kind={kind} takes no boundaries, but .*'80 epochs'"
    ):
        config_lib.validate(changed(**{"schedule.kind": kind, "schedule.boundaries": "80 epochs"}))


def test_nesterovs_momentum_needs_a_momentum():
    config_lib.validate(changed(**{"optimizer.nesterov": True}))
    with pytest.raises(UserError, match=r"optimizer.nesterov=True needs optimizer.momentum"):
        config_lib.validate(changed(**{"optimizer.nesterov": True, "optimizer.momentum": 0.0}))


def test_every_trial_has_a_seed():
    config_lib.validate(changed(seed=2**32 - 2, trials=2))
    with pytest.raises(UserError, match=r"trials=2, .* at most 4294967294"):
        config_lib.validate(changed(seed=2**32 - 1, trials=2))


def test_a_folder_of_images_is_named():
    with pytest.raises(UserError, match=r"set --config.dataset.source=DIR to your images"):
        config_lib.validate(changed(**{"dataset.name": "folder", "dataset.size": 256}))


def test_an_unknown_key_names_the_nearest():
    with pytest.raises(UserError, match=r"ing_rat'; the nearest is 'schedule.learning_rate'"):
        config_lib.check_key("schedule.learning_rat")
    config_lib.check_key("schedule.learning_rate")


def test_a_config_survives_its_file(tmp_path):
    config = changed(**{"schedule.boundaries": "1 epoch", "dataset.flip": True, "seed": 7})
    path = tmp_path / "config.json"
    path.write_text(config_lib.to_json(config))
    assert config_lib.read_config(path) == config


@pytest.mark.parametrize("text", ["", "{", '{"seed": "one"}', "[]"])
def test_what_is_no_config_is_refused(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(UserError, match="is not a config"):
        config_lib.read_config(path)


def test_the_config_of_another_version_is_refused_by_its_keys(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"seed": 3, "schedule": {"rate": 0.1, "drops": ""}}')
    with pytest.raises(UserError) as caught:
        config_lib.read_config(path)
    assert "was written by another version" in str(caught.value)
    assert "(schedule.drops, schedule.rate); resume with that version" in str(caught.value)


def test_differences_are_of_the_recipe():
    stored = default_config()
    now = changed(
        **{"schedule.learning_rate": 0.2, "log_every": "3 steps", "dataset.data_dir": "/x"}
    )
    assert config_lib.differences(stored, now) == ["schedule.learning_rate: 0.1 -> 0.2"]
    assert set(config_lib.FREE_KEYS) <= set(config_lib.flatten(stored))


def test_options_of_a_network():
    text = "execution=grouped, custom_vjp=False,width=3 , rate=0.5,what=None"
    assert config_lib.parse_options("model.options", text) == {
        "execution": "grouped",
        "custom_vjp": False,
        "width": 3,
        "rate": 0.5,
        "what": None,
    }
    assert config_lib.parse_options("model.options", "") == {}
