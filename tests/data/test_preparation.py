import fcntl
import filecmp
import itertools
import pathlib
import resource
import shutil

import pytest
from toy_sources import WNIDS, photo, write_imagenet

from multipath_jax.data.imagenet import dataset as imagenet
from multipath_jax.data.imagenet import preparation
from multipath_jax.data.imagenet.preparation import LEFT_OUT, Preparation, claim
from multipath_jax.errors import UserError


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    """Makes shards small: 4 for the 15 training images, 2 for the 6 validation images."""
    monkeypatch.setattr(preparation, "_IMAGES_PER_SHARD", 4)


@pytest.fixture
def source(tmp_path) -> pathlib.Path:
    return write_imagenet(tmp_path / "source")


def _prepare(source, data_dir, *, workers=1, on_bad="stop", only=None) -> pathlib.Path:
    """Prepares the data set, or stops after ``only`` shards; returns the folder of the data set."""
    builder = imagenet.builder("full", data_dir)
    found = imagenet.find("full", source)
    splits = {"train": found.train, "validation": found.validation}
    with claim(builder):
        work = Preparation(builder, found.class_names, splits, on_bad)
        written = list(itertools.islice(work.write(workers), only))
        assert len(written) == only or set(written) == set(work.pending)
        if only is None:
            work.publish()
    return pathlib.Path(builder.data_dir)


def _pending(source, data_dir, on_bad="stop") -> int:
    builder = imagenet.builder("full", data_dir)
    found = imagenet.find("full", source)
    splits = {"train": found.train, "validation": found.validation}
    return len(Preparation(builder, found.class_names, splits, on_bad).pending)


def _same(a: pathlib.Path, b: pathlib.Path) -> bool:
    names = sorted(path.name for path in a.iterdir())
    assert names == sorted(path.name for path in b.iterdir())
    return filecmp.cmpfiles(a, b, names, shallow=False) == (names, [], [])


def _inodes(folder: pathlib.Path) -> dict[str, tuple[int, int]]:
    files = folder.glob("*.array_record-*-of-*")
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def _work(data_dir) -> pathlib.Path:
    return pathlib.Path(data_dir) / "imagenet256" / "full" / "incomplete.1.0.0"


def test_twice_the_same_bytes(source, tmp_path):
    assert _same(_prepare(source, tmp_path / "a"), _prepare(source, tmp_path / "b"))


def test_nothing_but_the_data_set_is_left(source, tmp_path):
    folder = _prepare(source, tmp_path / "data")
    assert [path.name for path in folder.parent.iterdir()] == ["1.0.0"]
    assert len(_inodes(folder)) == 6
    others = {path.name for path in folder.iterdir()} - set(_inodes(folder))
    assert others == {"dataset_info.json", "features.json", "label.labels.txt"}


def test_goes_on_without_writing_finished_shards_again(source, tmp_path):
    _prepare(source, tmp_path / "data", only=3)
    before = _inodes(_work(tmp_path / "data") / "data")
    assert len(before) == 3
    folder = _prepare(source, tmp_path / "data")
    after = _inodes(folder)
    assert {name: after[name] for name in before} == before
    assert _same(folder, _prepare(source, tmp_path / "undisturbed"))


def test_unfinished_files_are_removed(source, tmp_path):
    _prepare(source, tmp_path / "data", only=2)
    work = _work(tmp_path / "data")
    finished = sorted(path.name for path in (work / "data").iterdir())
    (work / "data" / "imagenet256-train.array_record-00003-of-00004.part").write_bytes(b"half")
    (work / "data" / "imagenet256-train.array_record-00003-of-00004").write_bytes(b"no note")
    (work / "data" / "dataset_info.json").write_text("{")
    assert _pending(source, tmp_path / "data") == 4
    assert sorted(path.name for path in (work / "data").iterdir()) == finished


def test_a_shard_that_lost_its_end_is_written_again(source, tmp_path):
    _prepare(source, tmp_path / "data", only=2)
    path = next((_work(tmp_path / "data") / "data").iterdir())
    path.write_bytes(path.read_bytes()[:100])
    assert _pending(source, tmp_path / "data") == 5
    assert not path.exists()


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"records": 1}'])
def test_a_damaged_note_is_none(source, tmp_path, damage):
    _prepare(source, tmp_path / "data", only=2)
    next((_work(tmp_path / "data") / "done").iterdir()).write_bytes(damage)
    assert _pending(source, tmp_path / "data") == 5


def _change_a_picture(source):
    path = source / "train" / WNIDS[0] / f"{WNIDS[0]}_2.JPEG"
    path.write_bytes(photo(12345))


def _remove_a_picture(source):
    (source / "train" / WNIDS[0] / f"{WNIDS[0]}_2.JPEG").unlink()


@pytest.mark.parametrize("change", [_change_a_picture, _remove_a_picture])
def test_a_changed_source_changes_its_shard(source, tmp_path, change):
    _prepare(source, tmp_path / "data", only=6)
    assert _pending(source, tmp_path / "data") == 0
    before = _inodes(_work(tmp_path / "data") / "data")
    change(source)
    folder = _prepare(source, tmp_path / "data")
    after = _inodes(folder)
    assert sum(after[name] == before[name] for name in after) == 5
    assert _same(folder, _prepare(source, tmp_path / "undisturbed"))


def test_the_shards_of_another_source_are_not_thrown_away(source, tmp_path):
    _prepare(source, tmp_path / "data", only=3)
    data = _work(tmp_path / "data") / "data"
    before = _inodes(data)
    other = write_imagenet(tmp_path / "other", WNIDS[1:])
    with pytest.raises(UserError, match=f"the finished shards in {data} are from another source"):
        _prepare(other, tmp_path / "data")
    assert _inodes(data) == before
    _prepare(source, tmp_path / "data")


def _bad(source) -> pathlib.Path:
    path = source / "train" / WNIDS[1] / f"{WNIDS[1]}_3.JPEG"
    path.write_text("not a picture\n")
    return path


def test_stops_at_an_unreadable_image_and_goes_on_once_it_is_replaced(source, tmp_path):
    path = _bad(source)
    with pytest.raises(UserError) as caught:
        _prepare(source, tmp_path / "data", workers=2)
    assert str(caught.value).startswith(f"{path} cannot be read (not an image of a known format")
    assert "on_bad=skip" in str(caught.value)
    assert not (tmp_path / "data" / "imagenet256" / "full" / "1.0.0").exists()
    path.write_bytes(photo(3))
    folder = _prepare(source, tmp_path / "data")
    assert _same(folder, _prepare(source, tmp_path / "undisturbed"))


def test_skips_unreadable_images_and_lists_them(source, tmp_path):
    path = _bad(source)
    cut = source / "val" / WNIDS[0] / "ILSVRC2012_val_00000000.JPEG"
    cut.write_bytes(cut.read_bytes()[:-60])
    folder = _prepare(source, tmp_path / "data", on_bad="skip")
    lines = (folder / LEFT_OUT).read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == [str(path), str(cut)]
    assert "truncated" in lines[1]
    path.unlink()
    cut.unlink()
    without = _prepare(source, tmp_path / "without")
    (folder / LEFT_OUT).unlink()
    assert _same(folder, without)


def test_what_was_skipped_stops_a_preparation_that_skips_nothing(source, tmp_path):
    path = _bad(source)
    _prepare(source, tmp_path / "data", on_bad="skip", only=6)
    assert _pending(source, tmp_path / "data", on_bad="skip") == 0
    with pytest.raises(UserError, match=str(path)):
        _prepare(source, tmp_path / "data", on_bad="stop")


def test_nothing_readable(source, tmp_path):
    for path in source.glob("val/*/*"):
        path.write_text("")
    with pytest.raises(UserError, match="no image of the split 'validation' can be read"):
        _prepare(source, tmp_path / "data", on_bad="skip")


def test_a_file_that_vanishes_meanwhile_is_unreadable(source, tmp_path):
    builder = imagenet.builder("full", tmp_path / "data")
    found = imagenet.find("full", source)
    work = Preparation(builder, found.class_names, {"train": found.train})
    shutil.rmtree(source)
    with pytest.raises(UserError, match=r"cannot be read \(No such file or directory\)"):
        list(work.write(1))


def test_two_cannot_prepare_the_same(source, tmp_path):
    work = _work(tmp_path / "data")
    work.mkdir(parents=True)
    with open(work / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is preparing"):
            _prepare(source, tmp_path / "data")
    _prepare(source, tmp_path / "data")


def test_a_data_directory_that_cannot_be_written(source, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written \(Not a directory\); choose another"):
        _prepare(source, tmp_path / "file")


def test_a_full_disk(source, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, hard))  # the maximum size of a file
    try:
        with pytest.raises(UserError, match=r"cannot be written .*free disk space"):
            _prepare(source, tmp_path / "data")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    folder = _prepare(source, tmp_path / "data")
    assert _same(folder, _prepare(source, tmp_path / "undisturbed"))


def test_shards_are_shuffled_and_of_like_size(source, tmp_path):
    builder = imagenet.builder("full", tmp_path / "data")
    found = imagenet.find("full", write_imagenet(tmp_path / "more", train=40))
    work = Preparation(builder, found.class_names, {"train": found.train})
    sizes = [len(shard.images) for shard in work.shards]
    assert sum(sizes) == 120
    assert len(sizes) == 30
    labels = [image.label for shard in work.shards for image in shard.images]
    # Sorted by class, the label changes twice; in random order, in two thirds of 119 pairs.
    assert sum(a != b for a, b in itertools.pairwise(labels)) > 60
