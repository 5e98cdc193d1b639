import pathlib
import pickle

import pytest
from toy_sources import photo

from multipath_jax.data.folder import open_folder
from multipath_jax.data.images import BadImage
from multipath_jax.errors import UserError


def _write(folder: pathlib.Path, **counts: int) -> None:
    """Class folders with so many images each."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for index in range(count):
            (folder / name / f"{index:03}.jpg").write_bytes(f"{name} {index}".encode())


def _labelled(builder, split) -> set[tuple[bytes, str]]:
    names = builder.info.features["label"].names
    source = builder.as_data_source(split)
    rows = [source[index] for index in range(len(source))]
    assert len(rows) == builder.info.splits[split].num_examples
    return {(row["image"], names[row["label"]]) for row in rows}


def _expected(name, indices) -> set[tuple[bytes, str]]:
    return {(f"{name} {index}".encode(), name) for index in indices}


def _error(source) -> str:
    with pytest.raises(UserError) as caught:
        open_folder(source)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("test", ["test", "val", "validation"])
def test_given_splits(tmp_path, test):
    _write(tmp_path / "train", dog=3, cat=4)
    _write(tmp_path / test, dog=2, cat=1)
    builder = open_folder(tmp_path)
    assert builder.info.features["label"].names == ["cat", "dog"]
    assert _labelled(builder, "train") == _expected("cat", range(4)) | _expected("dog", range(3))
    assert _labelled(builder, "test") == _expected("cat", range(1)) | _expected("dog", range(2))


def test_test_goes_before_val(tmp_path):
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        _write(tmp_path / split, dog=count, cat=count)
    assert open_folder(tmp_path).info.splits["test"].num_examples == 2


def test_the_second_of_every_ten_is_held_out(tmp_path, caplog):
    _write(tmp_path, cat=23, dog=1, owl=2)
    with caplog.at_level("INFO", logger="absl"):
        builder = open_folder(tmp_path)
    test = {1, 11, 21}
    assert _labelled(builder, "test") == _expected("cat", test) | _expected("owl", {1})
    left = _expected("cat", set(range(23)) - test) | _expected("dog", {0}) | _expected("owl", {0})
    assert _labelled(builder, "train") == left
    assert "the second of every 10 images of a class is held out, 4 of 26" in caplog.text


def test_twice_the_same_order(tmp_path):
    _write(tmp_path, cat=5, dog=5)
    first, second = (open_folder(tmp_path).as_data_source("train") for _ in range(2))
    assert first.images == second.images


def test_an_example(tmp_path):
    _write(tmp_path, cat=3, dog=3)
    (tmp_path / "cat" / "a.png").write_bytes(photo(0))
    source = open_folder(tmp_path).as_data_source("train")
    example = next(row for row in source if row["file_name"] == "a.png")
    assert example == {"image": photo(0), "label": 0, "file_name": "a.png"}


def test_goes_to_worker_processes(tmp_path):
    _write(tmp_path, cat=3, dog=3)
    source = open_folder(tmp_path).as_data_source("train")
    assert list(pickle.loads(pickle.dumps(source))) == list(source)


def test_describes_itself_as_a_tfds_builder(tmp_path):
    _write(tmp_path, cat=3, dog=3)
    info = open_folder(tmp_path).info
    assert info.features["image"].shape == (None, None, 3)
    assert info.splits["train"].num_bytes == 4 * len("cat 0")
    assert str(tmp_path) in open_folder(tmp_path).data_dir


def test_a_file_that_vanishes_is_a_bad_image(tmp_path):
    _write(tmp_path, cat=3, dog=3)
    source = open_folder(tmp_path).as_data_source("train")
    (tmp_path / "cat" / "000.jpg").unlink()
    with pytest.raises(BadImage, match="No such file"):
        source[0]


def test_no_such_folder(tmp_path):
    assert f"{tmp_path / 'none'} is not a folder" in _error(tmp_path / "none")


def test_images_without_class_folders(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    assert f"{tmp_path} holds no class folders" in _error(tmp_path)


def test_a_single_class(tmp_path):
    _write(tmp_path, cat=3)
    assert "holds a single class folder, cat; at least two" in _error(tmp_path)


@pytest.mark.parametrize("where", ["", "train", "test"])
def test_an_empty_class_folder(tmp_path, where):
    if where:
        _write(tmp_path / "train", cat=3, dog=2)
        _write(tmp_path / "test", cat=1, dog=1)
    else:
        _write(tmp_path, cat=3, dog=2)
    folder = tmp_path / where / "dog"
    for path in folder.iterdir():
        path.unlink()
    (folder / "notes.txt").write_text("")
    assert f"the class folder {folder} holds no image" in _error(tmp_path)


def test_a_class_may_go_untested(tmp_path):
    _write(tmp_path / "train", cat=3, dog=2)
    _write(tmp_path / "test", dog=1)
    assert _labelled(open_folder(tmp_path), "test") == _expected("dog", {0})


def test_a_class_that_is_only_tested(tmp_path):
    _write(tmp_path / "train", cat=3, dog=2)
    _write(tmp_path / "test", dog=1, owl=1)
    assert f"{tmp_path / 'test'} has the class 'owl', but" in _error(tmp_path)


@pytest.mark.parametrize("splits", [["train"], ["test"], ["train", "extra"]])
def test_a_split_is_missing(tmp_path, splits):
    for split in splits:
        _write(tmp_path / split, cat=3, dog=2)
    assert "it needs train and test or val or validation" in _error(tmp_path)


def test_nothing_to_test_on(tmp_path):
    _write(tmp_path, cat=1, dog=1)
    assert f"{tmp_path} holds no image to test on" in _error(tmp_path)
