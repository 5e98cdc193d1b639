import io
import pathlib
import tarfile

import numpy as np
import pytest
import scipy.io
from toy_sources import WNIDS, flatten_val, pack, val_labels, val_name, write_imagenet

from multipath_jax.data.imagenet.source import TRAIN_TAR, VAL_TAR, find_images
from multipath_jax.errors import UserError


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    return write_imagenet(tmp_path / "folder")


@pytest.fixture
def tars(folder, tmp_path) -> pathlib.Path:
    target = pack(folder, tmp_path / "tars")
    _write_named_labels(target / "val_labels.txt", val_labels(folder))
    return target


def _write_named_labels(path, labels):
    path.write_text("".join(f"{name} {wnid}\n" for name, wnid in labels.items()))


def _write_ordered_labels(path, labels):
    path.write_text("".join(f"{wnid}\n" for wnid in labels.values()))


def _write_kaggle_labels(path, labels):
    rows = (f"{name[:-5]},{wnid} 85 1 499 272 \n" for name, wnid in reversed(labels.items()))
    path.write_text("ImageId,PredictionString\n" + "".join(rows))


def _write_devkit(path, labels):
    """Writes a development kit; as in the real file, class IDs are not in the order of WNIDs."""
    wnids = sorted(set(labels.values()), reverse=True)
    parent = "n00001740"  # as in the real file, synsets without images follow
    synsets = np.array(
        [(number, wnid, 0.0) for number, wnid in enumerate([*wnids, parent], 1)],
        dtype=[("ILSVRC2012_ID", float), ("WNID", object), ("num_children", float)],
    )
    meta = io.BytesIO()
    scipy.io.savemat(meta, {"synsets": synsets[:, None]})
    truth = "".join(f"{wnids.index(wnid) + 1}\n" for wnid in labels.values())
    with tarfile.open(path, "w:gz") as tar:
        for name, content in (
            ("meta.mat", meta.getvalue()),
            ("ILSVRC2012_validation_ground_truth.txt", truth.encode()),
        ):
            member = tarfile.TarInfo(f"ILSVRC2012_devkit_t12/data/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


LABEL_FILES = {
    "named": ("val_labels.txt", _write_named_labels),
    "ordered": ("val_labels.txt", _write_ordered_labels),
    "Kaggle's": ("LOC_val_solution.csv", _write_kaggle_labels),
    "devkit": ("ILSVRC2012_devkit_t12.tar.gz", _write_devkit),
}


def _contents(images) -> list[tuple]:
    return [(image.label, image.name, image.read()) for image in images]


def _error(source, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        find_images(source, *arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_folders(folder):
    found = find_images(folder)
    assert found.class_names == WNIDS
    paths = sorted(folder.glob("train/*/*"))
    expected = [(WNIDS.index(p.parent.name), p.name, p.read_bytes()) for p in paths]
    assert _contents(found.train) == expected
    assert {image.name: WNIDS[image.label] for image in found.validation} == val_labels(folder)


def test_tar_files_hold_the_same_as_folders(folder, tars):
    packed, unpacked = find_images(tars), find_images(folder)
    assert packed.class_names == unpacked.class_names
    assert _contents(packed.train) == _contents(unpacked.train)
    assert _contents(packed.validation) == sorted(
        _contents(unpacked.validation), key=lambda i: i[1]
    )
    assert str(packed.train[0]) == f"n01440764_0.JPEG in {tars / TRAIN_TAR}"


@pytest.mark.parametrize("kind", LABEL_FILES)
def test_a_flat_folder_with_labels(folder, kind):
    labels = val_labels(folder)
    flatten_val(folder)
    name, write = LABEL_FILES[kind]
    write(folder / name, labels)
    found = find_images(folder).validation
    assert {image.name: WNIDS[image.label] for image in found} == labels


def test_labels_from_elsewhere(folder, tmp_path):
    labels = val_labels(folder)
    flatten_val(folder)
    _write_named_labels(tmp_path / "mine.txt", labels)
    found = find_images(folder, None, tmp_path / "mine.txt").validation
    assert {image.name: WNIDS[image.label] for image in found} == labels


@pytest.mark.parametrize("kind", ["folder", "tars"])
def test_the_first_classes_by_sorted_wnid(kind, request):
    source = request.getfixturevalue(kind)
    found = find_images(source, 2)
    assert found.class_names == WNIDS[:2]
    assert {image.label for image in found.train} == {0, 1}
    assert {image.label for image in found.validation} == {0, 1}
    assert len(found.train) == 10
    assert len(found.validation) == 4


def test_more_classes_than_there_are(folder):
    assert f"{folder} has 3 classes, but 100 are required" in _error(folder, 100)


@pytest.mark.parametrize("name", ["train", "val"])
def test_half_is_missing(folder, name):
    (folder / name).rename(folder / "elsewhere")
    message = _error(folder)
    assert "has no " + {"train": "training", "val": "validation"}[name] + " images; put" in message


def test_no_such_folder(tmp_path):
    assert f"{tmp_path / 'none'} has no training images; put" in _error(tmp_path / "none")


def test_empty_class_folder(folder):
    for path in (folder / "train" / WNIDS[1]).iterdir():
        path.unlink()
    assert f"the class folder {folder / 'train' / WNIDS[1]} has no images" in _error(folder)


def test_a_folder_that_is_no_wnid(folder):
    (folder / "train" / "cats").mkdir()
    assert f"'cats' in {folder / 'train'} is not a WNID" in _error(folder)


def test_hidden_files_and_folders_are_passed_over(folder):
    (folder / "train" / ".cache").mkdir()
    (folder / "train" / WNIDS[0] / "._n01440764_0.JPEG").write_bytes(b"")
    (folder / "train" / WNIDS[0] / "README.txt").write_bytes(b"")
    assert len(find_images(folder).train) == 15


def test_a_class_that_is_only_validated(folder):
    (folder / "val" / "n09999999").mkdir()
    assert "has validation images of the class n09999999, which has no training" in _error(folder)


def test_unlabelled(folder):
    flatten_val(folder)
    assert f"the validation images in {folder} need labels; put ILSVRC2012_devkit" in _error(folder)


def test_labels_that_do_not_fit(folder):
    labels = val_labels(folder)
    flatten_val(folder)
    path = folder / "val_labels.txt"
    _write_named_labels(path, dict(list(labels.items())[1:]))
    assert f"{path} has no label for ILSVRC2012_val_00000000.JPEG" in _error(folder)
    _write_ordered_labels(path, dict(list(labels.items())[1:]))
    assert f"{path} has 5 labels for 6 images" in _error(folder)
    path.write_text("490\n361\n")
    assert f"line 1 of {path} has no WNID: '490'" in _error(folder)
    path.write_text("")
    assert "0 labels for 6 images" in _error(folder)
    path.write_bytes(b"\xff\xfe\x00")
    assert f"{path} cannot be read" in _error(folder)
    assert "cannot be read" in _error(folder, None, folder / "none.txt")


def test_a_devkit_that_is_none(folder):
    flatten_val(folder)
    path = folder / "ILSVRC2012_devkit_t12.tar.gz"
    path.write_bytes(b"no tar file")
    assert f"{path} cannot be read as a tar file" in _error(folder)
    with tarfile.open(path, "w:gz"):
        pass
    assert f"{path} is not the development kit as published" in _error(folder)


@pytest.fixture
def repacked(folder, tmp_path) -> pathlib.Path:
    """Tar files that were packed again on macOS, from inside the folders, by `tar cf FILE .`"""
    target = tmp_path / "repacked"
    target.mkdir()

    def add(tar, name, content=None):
        member = tarfile.TarInfo(name)
        if content is None:
            member.type = tarfile.DIRTYPE
            tar.addfile(member)
        else:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))

    def tar_of(paths) -> bytes:
        encoded = io.BytesIO()
        with tarfile.open(fileobj=encoded, mode="w") as tar:
            add(tar, "./")
            add(tar, "./.DS_Store", b"")
            for path in paths:
                add(tar, f"./._{path.name}", b"Mac OS X")
                add(tar, f"./{path.name}", path.read_bytes())
        return encoded.getvalue()

    with tarfile.open(target / TRAIN_TAR, "w") as tar:
        add(tar, "./")
        add(tar, "./ILSVRC2012_img_train/")
        for parent in sorted((folder / "train").iterdir()):
            add(tar, f"./ILSVRC2012_img_train/._{parent.name}.tar", b"Mac OS X")
            content = tar_of(sorted(parent.iterdir()))
            add(tar, f"./ILSVRC2012_img_train/{parent.name}.tar", content)
    (target / VAL_TAR).write_bytes(tar_of(sorted(folder.glob("val/*/*"))))
    _write_named_labels(target / "val_labels.txt", val_labels(folder))
    return target


def test_tar_files_packed_again_hold_the_same(tars, repacked):
    published, again = find_images(tars), find_images(repacked)
    assert again.class_names == published.class_names
    assert _contents(again.train) == _contents(published.train)
    assert _contents(again.validation) == _contents(published.validation)
    assert again.left_out == {"hidden images": 15 + 6}
    assert not published.left_out


def test_links_in_a_tar_file_are_counted(folder, tars):
    with tarfile.open(tars / VAL_TAR, "a") as tar:
        member = tarfile.TarInfo("again.JPEG")
        member.type, member.linkname = tarfile.SYMTYPE, val_name(0)
        tar.addfile(member)
    assert find_images(tars).left_out == {"links in a tar file": 1}


@pytest.mark.parametrize("name", [TRAIN_TAR, VAL_TAR, "val_labels.txt"])
def test_a_link_to_nothing_is_named(tars, name):
    (tars / name).rename(tars.parent / name)
    (tars / name).symlink_to(tars / "elsewhere" / name)
    assert f"{tars / name} is a broken link; fix or remove it" in _error(tars)


def test_a_class_folder_may_hold_folders(folder):
    """The class folders of Tiny ImageNet have a folder `images`."""
    expected = [content for _, _, content in _contents(find_images(folder).train)]
    for parent in list((folder / "train").iterdir()):
        parent.rename(folder / "images")
        parent.mkdir()
        (folder / "images").rename(parent / "images")
    assert [content for _, _, content in _contents(find_images(folder).train)] == expected


@pytest.mark.parametrize("kind", LABEL_FILES)
def test_labels_that_windows_marked(folder, kind):
    """Files that were saved on Windows may have a byte order mark and CRLF line ends."""
    labels = val_labels(folder)
    flatten_val(folder)
    name, write = LABEL_FILES[kind]
    write(folder / name, labels)
    if not name.endswith(".gz"):
        text = (folder / name).read_text()
        (folder / name).write_text("\ufeff" + text, "utf-8", newline="\r\n")
    found = find_images(folder).validation
    assert {image.name: WNIDS[image.label] for image in found} == labels


def test_labels_that_contradict_each_other(folder):
    labels = val_labels(folder)
    flatten_val(folder)
    path = folder / "val_labels.txt"
    _write_named_labels(path, labels)
    with open(path, "a") as file:
        file.write(f"{val_name(0)} {labels[val_name(0)]}\n")
    find_images(folder)  # equal labels do not contradict each other
    with open(path, "a") as file:
        file.write(f"{val_name(0)} {WNIDS[2]}\n")
    message = _error(folder)
    assert f"{path} labels {val_name(0)} {WNIDS[0]} and also {WNIDS[2]}; remove" in message


@pytest.mark.parametrize("name", [TRAIN_TAR, VAL_TAR])
@pytest.mark.parametrize("part", [0, 0.5, 0.99])
def test_a_tar_file_that_is_cut_off(tars, name, part):
    path = tars / name
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content.rstrip(b"\0")))])
    assert f"{path} cannot be read as a tar file" in _error(tars)


def test_a_compressed_tar_file(folder, tars):
    with tarfile.open(tars / VAL_TAR, "w:gz") as tar:
        tar.add(folder / "val", "val")
    assert f"{tars / VAL_TAR} cannot be read as a tar file" in _error(tars)


def test_an_empty_class_in_the_tar_file(tars):
    with tarfile.open(tars / TRAIN_TAR, "w") as tar:
        empty = io.BytesIO()
        with tarfile.open(fileobj=empty, mode="w"):
            pass
        member = tarfile.TarInfo("n01440764.tar")
        member.size = len(empty.getvalue())
        tar.addfile(member, io.BytesIO(empty.getvalue()))
    assert "the class n01440764 in" in _error(tars)
