import json
import os
import pathlib
import resource
import shlex
import shutil

import pytest
from toy_datasets import examples, prepare

from multipath_jax.data import load_dataset, prepared
from multipath_jax.data.prepared import open_prepared
from multipath_jax.errors import UserError


def _error(name, data_dir) -> str:
    with pytest.raises(UserError) as caught:
        open_prepared(name, data_dir)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def toy(tmp_path) -> pathlib.Path:
    return pathlib.Path(prepare(tmp_path, {"train": examples(5), "test": examples(2)}))


@pytest.fixture
def no_tensorflow(monkeypatch):
    monkeypatch.setattr(prepared, "_has_tensorflow", lambda: False)


@pytest.fixture
def tensorflow(monkeypatch):
    """Simulates that TensorFlow is installed; returns the list of commands that are run."""
    commands = []
    monkeypatch.setattr(prepared, "_has_tensorflow", lambda: True)
    monkeypatch.setattr(prepared.subprocess, "run", lambda command, **_: commands.append(command))
    return commands


def test_names_a_version(toy):
    assert open_prepared("toy:1.0.0", toy.parents[1]).data_dir == str(toy)


def test_the_default_directory_is_that_of_tfds(toy, monkeypatch):
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(toy.parents[1]))
    assert open_prepared("toy", None).data_dir == str(toy)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("cifr10", "cifar10"), ("digit", "digits"), ("ty", "toy"), ("", "digits, cifar10, cifar100")],
)
def test_unknown_name_names_the_nearest(toy, name, nearest):
    message = _error(name, toy.parents[1])
    assert message.startswith(f"unknown data set {name!r}; the nearest known names are")
    assert nearest in message


@pytest.mark.parametrize("name", ["../toy", "toy toy", "toy/", ":1.0.0", "toy;rm"])
def test_a_name_that_cannot_be_one_is_unknown(toy, name):
    assert "unknown data set" in _error(name, toy.parents[1])


@pytest.mark.parametrize("left", ["incomplete.ABCDEF_1.0.0", "small/incomplete.1.0.0", ""])
def test_a_preparation_that_was_aborted_is_not_an_unknown_name(tmp_path, left):
    (tmp_path / "mine" / left).mkdir(parents=True)
    for name in ("mine", "mine:1.0.0"):
        message = _error(name, tmp_path)
        assert message.startswith(f"{tmp_path / 'mine'} has no complete data set")
        assert f"finish it with: `tfds build --data_dir={tmp_path}`" in message


def test_the_aborted_preparation_of_a_known_set_is_given_its_command(tmp_path, no_tensorflow):
    for name in ("mnist/incomplete.ABCDEF_3.0.1", "imagenet256/subset100/incomplete.1.0.0"):
        (tmp_path / name).mkdir(parents=True)
    assert "was interrupted; finish it with: pip install" in _error("mnist", tmp_path)
    for name in ("imagenet256", "imagenet256/subset100"):
        assert "finish it with: python -m multipath_jax.prepare imagenet" in _error(name, tmp_path)


def test_a_finished_config_does_not_hide_an_aborted_one(tmp_path):
    (tmp_path / "mine" / "whole" / "1.0.0").mkdir(parents=True)
    (tmp_path / "mine" / "half" / "incomplete.ABCDEF_1.0.0").mkdir(parents=True)
    assert "mine/half' was interrupted" in _error("mine/half", tmp_path)
    assert "has no 'mine/other', only whole; choose" in _error("mine/other", tmp_path)


def test_another_version_names_those_there(toy):
    (toy.parent / "incomplete.ABCDEF_2.0.0").mkdir()  # of an interrupted preparation
    assert "has no 'toy:2.0.0', only 1.0.0;" in _error("toy:2.0.0", toy.parents[1])


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100"])
def test_without_tensorflow_the_command_is_given(tmp_path, no_tensorflow, name):
    missing = tmp_path / "not there"
    message = _error(name, missing)
    assert f"{missing} has no data set {name!r}" in message
    command = message.split("prepare it with: ")[1]
    assert command.startswith("pip install tensorflow && python -c ")
    statements = shlex.split(command)[-1]
    assert f'tfds.builder("{name}", data_dir="{missing}")' in statements
    compile(statements, "command", "exec")


def test_the_command_prepares(tmp_path):
    """Tests the only registered data set that needs neither TensorFlow nor a download."""
    exec(prepared._preparation("digits", tmp_path))
    assert (tmp_path / "digits" / "1.0.0" / "features.json").exists()


def test_cifar_is_prepared_where_tensorflow_is(tmp_path, tensorflow, monkeypatch):
    def run(command, *, env, check):
        assert "cifar10" in command[-1]
        assert env["CUDA_VISIBLE_DEVICES"] == ""
        assert env["TQDM_DISABLE"] == "1"  # since there is no terminal
        prepare(tmp_path, {"train": examples(5), "test": examples(2)}, name="cifar10")

    monkeypatch.setattr(prepared.subprocess, "run", run)
    assert len(load_dataset("cifar10", tmp_path).train.labels) == 5


def test_a_failed_preparation_gives_the_command(tmp_path, tensorflow):
    message = _error("cifar100", tmp_path)
    assert len(tensorflow) == 1
    assert "prepare it with: python -c " in message


def test_other_sets_are_not_downloaded_unasked(tmp_path, tensorflow):
    _error("mnist", tmp_path)
    assert not tensorflow


def test_prepared_cifar_is_not_prepared_again(tmp_path, tensorflow):
    prepare(tmp_path, {"train": examples(5), "test": examples(2)}, name="cifar10")
    open_prepared("cifar10", tmp_path)
    assert not tensorflow


def test_data_directory_that_is_a_file(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    assert f"the data directory {file} cannot be read (Not a directory)" in _error("digits", file)


def test_data_directory_that_cannot_be_written(tmp_path, monkeypatch):
    def refuse(data_dir):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(prepared.digits, "prepare_digits", refuse)
    message = _error("digits", tmp_path)
    assert message.startswith(
        f"digits cannot be written to {tmp_path} (Permission denied); free disk space"
    )


def test_a_full_disk_is_one_line(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, hard))  # the maximum size of a file
    try:
        message = _error("digits", tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert message.startswith(f"digits cannot be written to {tmp_path} (")
    assert "File too large" in message


def test_without_a_home_folder(monkeypatch):
    """A container may run as a user that it does not know, who has no home folder."""
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert "there is no such home folder" in _error("digits", "~/data")
    assert "there is no such home folder" in _error("digits", pathlib.Path("~"))


def test_what_cannot_be_looked_at_is_named(toy, monkeypatch):
    """The error is simulated, because root can read all folders."""

    def refuse(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(prepared, "_check_complete", refuse)
    message = _error("toy", toy.parents[1])
    assert message.startswith(f"{toy.parent} cannot be read (Permission denied); fix that, or")


def test_tfrecord_only(toy):
    """TFDS can only write TFRecord with TensorFlow, so the files are renamed."""
    for file in toy.glob("*.array_record*"):
        file.rename(str(file).replace("array_record", "tfrecord"))
    info = toy / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    message = _error("toy", toy.parents[1])
    assert f"{toy} has tfrecord files, not array_record;" in message
    assert (
        f"tfds convert_format --dataset_version_dir={toy} --out_file_format=array_record" in message
    )


def test_array_record_beside_tfrecord_is_read(toy):
    """Without --out_dir, `tfds convert_format` adds array_record to the available formats."""
    path = toy / "dataset_info.json"
    info = json.loads(path.read_text())
    info |= {"fileFormat": "tfrecord", "alternativeFileFormats": ["array_record"]}
    path.write_text(json.dumps(info))
    assert len(load_dataset("toy", toy.parents[1]).train.labels) == 5


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
def test_description_missing(toy, file):
    (toy / file).unlink()
    message = _error("toy", toy.parents[1])
    assert message == f"{toy} has no {file}; remove it with `rm -r {toy}` and rerun the command"


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
def test_description_damaged(toy, file):
    path = toy / file
    path.write_text(path.read_text()[:-20])
    message = _error("toy", toy.parents[1])
    assert "the description of 'toy'" in message
    assert f"`rm -r {toy.parent}`" in message


def test_an_empty_folder_of_the_digits_is_named(tmp_path):
    folder = tmp_path / "digits" / "1.0.0"
    folder.mkdir(parents=True)
    assert f"`rm -r {folder}`" in _error("digits", tmp_path)
    shutil.rmtree(folder)
    open_prepared("digits", tmp_path)
