"""Data sets in buckets."""

import shutil

import buckets
import pytest

from multipath_jax.data import load_dataset
from multipath_jax.data.prepared import open_prepared
from multipath_jax.data.records import Records
from multipath_jax.errors import UserError


def test_records_are_read_from_a_bucket(bucket, data_dir, monkeypatch):
    buckets.upload(data_dir / "digits", f"{bucket}/tfds/digits")
    with buckets.downloads() as service:
        monkeypatch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", service)
        found = Records(open_prepared("digits", f"{bucket}/tfds"), "test").read([0, 5, 300])
    assert found == Records(open_prepared("digits", data_dir), "test").read([0, 5, 300])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "digits",
            r"gs://bucket/tfds has no data set 'digits'; prepare it with: python -c .*'tfds'.*"
            r" && gcloud storage cp --recursive tfds/digits gs://bucket/tfds/$",
        ),
        (
            "cifar10",
            r"gs://bucket/tfds has no data set 'cifar10'; prepare it with: .*cifar10.*\"tfds\".*"
            r" && gcloud storage cp --recursive tfds/cifar10 gs://bucket/tfds/$",
        ),
        (
            "imagenet256/subset100",
            r"prepare it with: .*--data_dir=tfds.* && gcloud storage cp --recursive "
            r"tfds/imagenet256 gs://bucket/tfds/$",
        ),
        ("cifar11", "unknown data set 'cifar11'; the nearest known names are cifar10"),
    ],
)
def test_a_set_that_is_not_in_the_bucket_says_how_it_gets_there(bucket, name, message):
    with pytest.raises(UserError, match=message):
        load_dataset(name, f"{bucket}/tfds")


def test_other_buckets_and_their_errors_are_one_line(bucket, monkeypatch):
    with pytest.raises(UserError, match="array_record reads only local files and gs://"):
        load_dataset("digits", "s3://bucket/tfds")

    def refuse(*_, **__):
        raise RuntimeError("401, no credentials")

    monkeypatch.setattr(buckets.Buckets, "ls", refuse)
    message = (
        r"data directory gs://bucket/tfds cannot be read \(RuntimeError: 401, no credentials\)"
    )
    with pytest.raises(UserError, match=message):
        load_dataset("digits", f"{bucket}/tfds")


def test_a_damaged_set_in_a_bucket_says_how_to_remove_it(bucket, data_dir, tmp_path):
    copy = shutil.copytree(data_dir / "digits", tmp_path / "digits")
    (version,) = (path for path in copy.iterdir() if path.is_dir())
    (version / "features.json").unlink()
    buckets.upload(copy, f"{bucket}/tfds/digits")
    message = "has no features.json; remove it with `gcloud storage rm -r gs://bucket/tfds/digits/"
    with pytest.raises(UserError, match=message):
        load_dataset("digits", f"{bucket}/tfds")
