import io
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2
from toy_sources import WNIDS, pack, val_labels, write_imagenet

from multipath_jax import prepare
from multipath_jax.data import load_dataset
from multipath_jax.data.imagenet import dataset as imagenet
from multipath_jax.data.images import decode, encode, square
from multipath_jax.data.prepared import open_prepared
from multipath_jax.errors import UserError


def _prepare(source, data_dir, *flags) -> None:
    command = ["imagenet", f"--source={source}", f"--data_dir={data_dir}", "--workers=1", *flags]
    assert prepare.main(command) == 0


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> pathlib.Path:
    return write_imagenet(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def data_dir(source, tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("data")
    _prepare(source, folder)
    return folder


def _rows(builder, split) -> list[dict]:
    return list(builder.as_data_source(split))


@pytest.mark.parametrize("name", ["imagenet256", "imagenet256/full", "imagenet256/full:1.0.0"])
def test_opens_by_its_name(data_dir, name):
    builder = open_prepared(name, data_dir)
    assert builder.info.full_name == "imagenet256/full/1.0.0"
    assert {s: i.num_examples for s, i in builder.info.splits.items()} == {
        "train": 15,
        "validation": 6,
    }


def test_holds_every_image_once_rescaled_with_its_class_and_name(source, data_dir):
    builder = open_prepared("imagenet256", data_dir)
    names = builder.info.features["label"].names
    assert tuple(names) == WNIDS
    rows = {row["file_name"].decode(): row for row in _rows(builder, "train")}
    paths = {path.name: path for path in source.glob("train/*/*")}
    assert rows.keys() == paths.keys()
    for name, path in paths.items():
        assert names[rows[name]["label"]] == path.parent.name
        stored = np.asarray(Image.open(io.BytesIO(encode(square(decode(path.read_bytes()), 256)))))
        np.testing.assert_array_equal(rows[name]["image"], stored)
    validation = {row["file_name"].decode(): row["label"] for row in _rows(builder, "validation")}
    assert {name: names[label] for name, label in validation.items()} == val_labels(source)


def test_is_what_tfds_would_have_written(source, data_dir, tmp_path):
    """For the same examples, TFDS writes the same records."""
    ours = open_prepared("imagenet256", data_dir)
    rows = _rows(ours, "train")
    images = [
        row | {"image": encode(square(decode(path.read_bytes()), 256))}
        for row in rows
        for path in source.glob(f"train/*/{row['file_name'].decode()}")
    ]

    class Reference(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=ours.info.features, disable_shuffling=True
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            yield from enumerate(images)

    tfds.disable_progress_bar()
    reference = Reference(data_dir=tmp_path)
    reference.download_and_prepare(file_format="array_record")
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    first, second = (
        [tf_example_pb2.Example.FromString(record) for record in source]
        for source in (
            builder.as_data_source("train", deserialize_method=raw) for builder in (ours, reference)
        )
    )
    assert first == second


def test_is_read_as_any_other_data_set(data_dir):
    data = load_dataset("imagenet256/full", data_dir)
    assert data.image_shape == (256, 256, 3)
    assert data.class_names == WNIDS
    assert len(data.test.labels) == 6


def test_tar_files_give_the_same_records(source, data_dir, tmp_path):
    tars = pack(source, tmp_path / "tars")
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(f"{name} {wnid}" for name, wnid in val_labels(source).items()))
    _prepare(tars, tmp_path / "data", f"--val_labels={labels}")
    for path in pathlib.Path(open_prepared("imagenet256", data_dir).data_dir).iterdir():
        packed = tmp_path / "data" / path.relative_to(data_dir)
        assert packed.read_bytes() == path.read_bytes()


def test_subset100_has_the_first_100_classes_by_sorted_wnid(tmp_path):
    wnids = [f"n{number:08}" for number in range(90_000_103, 90_000_000, -1)]
    source = write_imagenet(tmp_path / "source", wnids, train=1, val=1)
    _prepare(source, tmp_path / "data", "--config=subset100")
    builder = open_prepared("imagenet256/subset100", tmp_path / "data")
    names = builder.info.features["label"].names
    assert names == sorted(wnids)[:100]
    for split in ("train", "validation"):
        assert sorted(row["label"] for row in _rows(builder, split)) == list(range(100))
    first = min(source.glob("train/*/*"))
    row = next(r for r in _rows(builder, "train") if r["file_name"].decode() == first.name)
    assert names[row["label"]] == first.parent.name == "n90000001"


@pytest.mark.parametrize(
    ("name", "flag"),
    [("imagenet256", ""), ("imagenet256/full:1.0.0", ""), ("imagenet256/subset100", "subset100")],
)
def test_where_it_is_missing_the_command_is_given(tmp_path, name, flag):
    with pytest.raises(UserError) as caught:
        open_prepared(name, tmp_path)
    command = "python -m multipath_jax.prepare imagenet --source=DIR"
    expected = f"prepare it with: {command} --data_dir={tmp_path}"
    assert str(caught.value).endswith(expected + (f" --config={flag}" if flag else ""))


def test_a_config_that_there_is_not(data_dir):
    with pytest.raises(UserError, match="has no 'imagenet256/half', only full; choose"):
        open_prepared("imagenet256/half", data_dir)


def test_tfds_itself_names_the_command(tmp_path):
    builder = imagenet.builder("subset100", tmp_path)
    with pytest.raises(UserError, match=r"prepare imagenet .*--config=subset100"):
        builder.download_and_prepare()


def test_tfds_reads_it_without_this_package_and_without_tensorflow(data_dir):
    code = (
        "import sys, tensorflow_datasets as tfds;"
        "source = tfds.data_source('imagenet256/full', split='train', data_dir=sys.argv[1]);"
        "print(len(source), source[3]['image'].shape, source[3]['image'].dtype);"
        "print({'multipath_jax', 'tensorflow'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code, data_dir], capture_output=True, text=True)
    assert result.stdout == "15 (256, 256, 3) uint8\nset()\n", result.stderr
