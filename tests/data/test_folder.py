import json
import os
import pathlib
import pickle

import numpy as np
import pytest
from toy_sources import photo

from multipath_jax import pictures
from multipath_jax.data import describe, open_encoded
from multipath_jax.data.description import read_description, to_json
from multipath_jax.data.files import LeftOut
from multipath_jax.data.folder import open_folder
from multipath_jax.data.images import BadImage
from multipath_jax.errors import UserError


def _write(folder: pathlib.Path, **counts: int) -> None:
    """Writes class folders with the given numbers of image files."""
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


@pytest.mark.parametrize("test", ["test", "val", "valid", "validation"])
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


def test_the_second_of_every_ten_is_held_out(tmp_path):
    _write(tmp_path, cat=23, dog=1, owl=2)
    builder = open_folder(tmp_path)
    test = {1, 11, 21}
    assert _labelled(builder, "test") == _expected("cat", test) | _expected("owl", {1})
    left = _expected("cat", set(range(23)) - test) | _expected("dog", {0}) | _expected("owl", {0})
    assert _labelled(builder, "train") == left
    assert builder.notes == (
        f"{tmp_path}: 22 training and 4 test images of 3 classes: cat, dog, owl",
        "held out to test on: the second of every 10 images of a class",
        "without test images: dog",
    )


@pytest.mark.parametrize(("train", "test"), [("Train", "TEST"), ("TRAIN", "Valid")])
def test_splits_are_known_in_any_case(tmp_path, train, test):
    _write(tmp_path / train, dog=3, cat=4)
    _write(tmp_path / test, dog=2, cat=1)
    builder = open_folder(tmp_path)
    assert builder.info.features["label"].names == ["cat", "dog"]
    assert _labelled(builder, "test") == _expected("cat", range(1)) | _expected("dog", range(2))
    assert f"held out to test on: the folder {test}" in builder.notes


def test_one_split_under_two_names(tmp_path):
    for name in ("train", "Train", "test"):
        _write(tmp_path / name, dog=3, cat=4)
    assert f"{tmp_path} has both Train and train, which name the same split" in _error(tmp_path)


@pytest.mark.parametrize("inside", ["", "unknown"])
def test_images_without_labels_do_not_hide_those_with(tmp_path, inside):
    """As in Kaggle competitions, which do not publish the labels of `test`."""
    _write(tmp_path / "train", cat=3, dog=3)
    _write(tmp_path / "val", cat=2, dog=1)
    (tmp_path / "test" / inside).mkdir(parents=True)
    for index in range(5):
        (tmp_path / "test" / inside / f"{index}.jpg").write_bytes(b"")
    builder = open_folder(tmp_path)
    assert _labelled(builder, "test") == _expected("cat", range(2)) | _expected("dog", {0})
    assert builder.notes[1:] == (
        "held out to test on: the folder val",
        "left out: images in test (5)",
    )


def test_images_without_labels_alone_are_nothing_to_test_on(tmp_path):
    _write(tmp_path / "train", cat=3, dog=3)
    _write(tmp_path, test=2)
    message = _error(tmp_path)
    assert f"{tmp_path / 'test'} has no class folders, so its images have no labels" in message
    assert f"use {tmp_path / 'train'} as the source" in message


@pytest.fixture
def mixed(tmp_path) -> pathlib.Path:
    """Class folders with links, some to another folder, nested folders, and files to ignore."""
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    _write(here, cat=2, dog=1)
    _write(elsewhere, owl=2, more=1)
    (here / "owl").symlink_to(elsewhere / "owl")
    (here / "cat" / "linked.jpg").symlink_to(elsewhere / "owl" / "000.jpg")
    (here / "cat" / "gone.jpg").symlink_to(here / "nowhere")
    (here / "cat" / "loop.jpg").symlink_to(here / "cat" / "loop.jpg")
    (here / "cat" / "round").symlink_to(here)
    (here / "dog" / "of 2019").mkdir()
    (here / "dog" / "of 2019" / "000.JPG").write_bytes(b"older")
    (here / "dog" / "more.jpg").symlink_to(elsewhere / "more")  # a folder, despite the suffix
    (here / "dog" / "._000.jpg").write_bytes(b"")
    (here / "dog" / ".DS_Store").write_bytes(b"")
    (here / "dog" / ".cache").mkdir()
    (here / "dog" / ".cache" / "000.jpg").write_bytes(b"")
    (here / ".git").mkdir()
    (here / "dog" / "notes.txt").write_bytes(b"")
    (here / "dog" / "live.HEIC").write_bytes(b"")
    (here / "dog" / "LICENSE").write_bytes(b"")
    (here / "beside.jpg").write_bytes(b"")
    os.mkfifo(here / "dog" / "pipe.jpg")
    return here


IN_MIXED = [
    *("cat/000.jpg", "cat/001.jpg", "cat/linked.jpg"),
    *("dog/000.jpg", "dog/more.jpg/000.jpg", "dog/of 2019/000.JPG"),
    *("owl/000.jpg", "owl/001.jpg"),
]
LEFT_OUT = {
    "hidden folders": 2,
    "broken links": 2,
    "links to a parent folder": 1,
    "hidden images": 1,
    ".txt files": 1,
    ".heic files": 1,
    "files without a suffix": 1,
    "neither files nor folders": 1,
}


def test_one_rule_for_training_and_prediction(mixed):
    builder = open_folder(mixed)
    sources = [builder.as_data_source(split) for split in ("train", "test")]
    names = builder.info.features["label"].names
    trained = sorted(f"{names[i.label]}/{i.name}" for source in sources for i in source.images)
    left_out = LeftOut()
    predicted = pictures.find([mixed], left_out)
    assert trained == IN_MIXED
    assert [str(path.relative_to(mixed)) for path in predicted] == ["beside.jpg", *IN_MIXED]
    assert left_out == LEFT_OUT
    words = builder.notes[-1].removeprefix("left out: ")
    # Lists eight of nine reasons, by frequency; equally frequent reasons in order of occurrence.
    assert words.endswith(", and more")
    assert "hidden folders (2), broken links (2), images outside of class folders (1)" in (words)


def test_a_folder_linked_twice_is_read_twice(mixed):
    (mixed / "owl again").symlink_to(mixed / "owl")
    assert len(pictures.find([mixed], LeftOut())) == len(IN_MIXED) + 3


def test_why_a_class_folder_is_empty_is_said(tmp_path):
    _write(tmp_path, cat=2, dog=0)
    (tmp_path / "dog" / "a.heic").write_bytes(b"")
    assert "only .heic files (1); add some" in _error(tmp_path)


STRANGE = [b"caf\xe9", b"caf\xe8", b"$x$", b"_", b"_nolegend_", "猫".encode(), b"a\nb", b" c "]


def test_strange_names_are_classes_like_others(tmp_path):
    for name in STRANGE:
        folder = os.fsencode(tmp_path) + b"/" + name
        os.mkdir(folder)
        for index in range(2):
            with open(folder + b"/%d \xff.png" % index, "wb") as file:
                file.write(photo(index))
    dataset = open_encoded("folder", None, 16, source=tmp_path)
    assert [os.fsencode(name) for name in dataset.class_names] == sorted(STRANGE)
    assert dataset.test.load(np.arange(len(STRANGE))).labels.tolist() == list(range(len(STRANGE)))
    assert r"a\nb" in dataset.notes[0]
    assert r"caf\xe9" in dataset.notes[0]
    assert "\n" not in dataset.notes[0]
    kept = json.loads(to_json(describe(dataset)))
    assert kept["class_names"] == list(dataset.class_names)
    again = tmp_path.parent / "dataset.json"
    again.write_text(to_json(describe(dataset)))
    assert read_description(again).class_names == dataset.class_names


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
    assert f"{tmp_path} has no class folders" in _error(tmp_path)


def test_a_single_class(tmp_path):
    _write(tmp_path, cat=3)
    assert "has a single class folder, cat; at least two" in _error(tmp_path)


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
    assert f"the class folder {folder} has no images" in _error(tmp_path)


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
    assert "it needs train and test or val or valid or validation" in _error(tmp_path)


def test_nothing_to_test_on(tmp_path):
    _write(tmp_path, cat=1, dog=1)
    assert f"{tmp_path} has no test images" in _error(tmp_path)
