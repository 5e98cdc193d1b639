"""The loader of encoded images: order of examples, resuming, worker processes, and errors."""

import itertools
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import photos
import pytest

from multipath_jax.data import images, loader, open_encoded
from multipath_jax.data.loader import evaluation_batches, training_batches
from multipath_jax.errors import UserError

TRAIN, TEST, SIZE, BATCH = 22, 7, 16, 4
PER_EPOCH = TRAIN // BATCH


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    photos.prepare(folder, photos.rows(TRAIN), photos.rows(TEST, seed=1))
    return folder


@pytest.fixture(scope="module")
def dataset(data_dir):
    return open_encoded("photos", data_dir, SIZE)


@pytest.fixture(scope="module")
def by_hand():
    """The training images, decoded and rescaled without the loader."""
    decoded = (images.decode(row["image"]) for row in photos.rows(TRAIN))
    return np.stack([np.asarray(images.square(image, SIZE)) for image in decoded])


def take(split, count, **options):
    options = {"seed": 3, "batch_size": BATCH, "workers": 0} | options
    with training_batches(split, **options) as batches:
        return list(itertools.islice(batches, count))


def indices(batches, by_hand):
    """Returns the indices of the examples of each batch."""
    return [
        [next(i for i, image in enumerate(by_hand) if np.array_equal(image, one)) for one in images]
        for images, _ in batches
    ]


def assert_equal(found, expected):
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours.images, theirs.images)
        np.testing.assert_array_equal(ours.labels, theirs.labels)


def test_an_epoch_is_a_permutation_less_its_last_partial_batch(dataset, by_hand):
    found = take(dataset.train, 3 * PER_EPOCH)
    chosen = np.array(indices(found, by_hand))
    labels = np.stack([batch.labels for batch in found])
    np.testing.assert_array_equal(labels, chosen % len(photos.NAMES))
    epochs = chosen.reshape(3, -1)
    assert [len(set(epoch)) for epoch in epochs.tolist()] == [PER_EPOCH * BATCH] * 3
    assert len(set(map(tuple, epochs.tolist()))) == 3
    assert len({frozenset(epoch) for epoch in epochs.tolist()}) > 1  # the dropped remainder differs


def test_another_seed_is_another_order(dataset, by_hand):
    assert indices(take(dataset.train, 2), by_hand) != indices(
        take(dataset.train, 2, seed=4), by_hand
    )


@pytest.mark.parametrize("first", [1, PER_EPOCH - 1, PER_EPOCH, 2 * PER_EPOCH + 3])
def test_any_step_is_where_an_uninterrupted_loader_would_be(dataset, first):
    whole = take(dataset.train, 3 * PER_EPOCH)
    assert_equal(take(dataset.train, 2, first=first), whole[first : first + 2])


def test_a_step_a_billion_steps_on_is_there_at_once(dataset):
    (batch,) = take(dataset.train, 1, first=10**9)
    assert batch.images.shape == (BATCH, SIZE, SIZE, 3)


def test_each_process_of_a_run_reads_its_own_rows(dataset):
    whole = take(dataset.train, 2 * PER_EPOCH)
    for rows in ([0, 1], [2, 3], [1, 3]):
        part = take(dataset.train, 2 * PER_EPOCH, rows=np.array(rows))
        for ours, theirs in zip(part, whole, strict=True):
            np.testing.assert_array_equal(ours.images, theirs.images[rows])
            np.testing.assert_array_equal(ours.labels, theirs.labels[rows])


@pytest.mark.parametrize("batch_size", [1, 3, 7, 10])
def test_evaluation_takes_the_whole_split_in_order(dataset, batch_size):
    with evaluation_batches(dataset.test, batch_size, workers=0) as batches:
        found = list(batches)
    expected = dataset.test.load(np.arange(TEST))
    for name in ("images", "labels"):
        joined = np.concatenate([getattr(batch, name) for batch in found])
        np.testing.assert_array_equal(joined[:TEST], getattr(expected, name))
        assert len(joined) == TEST + -TEST % batch_size
        assert not joined[TEST:].any()


def test_images_of_the_right_size_are_not_resampled(tmp_path):
    rows = photos.rows(6, width=SIZE, height=SIZE)
    photos.prepare(tmp_path, rows, rows)
    found = open_encoded("photos", tmp_path, SIZE).train.load(np.arange(6))
    for image, row in zip(found.images, rows, strict=True):
        np.testing.assert_array_equal(image, images.decode(row["image"]))


def test_statistics_are_those_of_the_training_images(dataset, by_hand):
    pixels = by_hand / 255
    np.testing.assert_allclose(dataset.mean, pixels.mean((0, 1, 2)), rtol=1e-6)  # float32 rounding
    np.testing.assert_allclose(dataset.std, pixels.std((0, 1, 2)), rtol=1e-6)
    assert dataset.image_shape == (SIZE, SIZE, 3)
    assert (len(dataset.train), len(dataset.test)) == (TRAIN, TEST)
    assert dataset.class_names == photos.NAMES


def test_a_folder_of_class_folders_is_a_data_set_as_it_is(tmp_path):
    rows = photos.rows(TRAIN)
    for index, row in enumerate(rows):
        folder = tmp_path / photos.NAMES[row["label"]]
        folder.mkdir(exist_ok=True)
        (folder / f"{index:02}.jpg").write_bytes(row["image"])
    dataset = open_encoded("", None, SIZE, source=tmp_path)
    assert dataset.class_names == tuple(sorted(photos.NAMES))
    assert (len(dataset.train), len(dataset.test)) == (TRAIN - 6, 6)  # the second of every class
    found = dataset.test.load(np.arange(6))
    for pixels, label in zip(found.images, found.labels, strict=True):
        row = rows[6 + photos.NAMES.index(dataset.class_names[label])]
        np.testing.assert_array_equal(pixels, images.square(images.decode(row["image"]), SIZE))
    (tmp_path / "red" / "12.jpg").write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"image \d+, .*red/12.jpg, cannot be read .*; restore"):
        open_encoded("", None, SIZE, source=tmp_path)


# Damage


def damaged(tmp_path, bad: dict[int, dict]):
    """Opens a data set with some training rows changed; the statistics read all training images."""
    rows = [row | bad.get(index, {}) for index, row in enumerate(photos.rows(TRAIN))]
    photos.prepare(tmp_path, rows, photos.rows(TEST))
    return open_encoded("photos", tmp_path, SIZE)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"image": photos.jpeg(5, 5)[:400]}, "truncated"),
        ({"image": b"not an image"}, "not an image"),
        ({"label": -1}, "its label -1 is not one of 0 to 5"),
    ],
)
def test_a_bad_record_stops_and_is_named(tmp_path, change, reason):
    with pytest.raises(UserError) as caught:
        damaged(tmp_path, {5: change})
    message = str(caught.value)
    assert message.startswith("record 5 of 'train' in ")
    assert reason in message.lower()
    assert "; remove it with `rm -r" in message
    assert "\n" not in message


def test_a_bad_record_of_the_test_split_stops_too(tmp_path):
    rows = photos.rows(TEST)
    rows[2] |= {"image": b"not an image"}
    photos.prepare(tmp_path, photos.rows(TRAIN), rows)
    held_out = open_encoded("photos", tmp_path, SIZE).test
    with (
        evaluation_batches(held_out, 4, workers=0) as batches,
        pytest.raises(UserError, match="record 2 of 'test'"),
    ):
        list(batches)


def test_a_record_that_the_reader_refuses_is_named(dataset, monkeypatch):
    reader = type(dataset.train.records._reader)
    honest = reader.__getitem__

    def damaged(self, key):
        if key == 5:
            raise RuntimeError("DATA_LOSS: checksum")
        return honest(self, key)

    monkeypatch.setattr(reader, "__getitem__", damaged)
    with pytest.raises(UserError, match=r"record 5 of 'train' in .* \(DATA_LOSS: checksum\)"):
        dataset.train.load(np.arange(8))


# Workers


def is_alive(pid: int) -> bool:
    """Whether a process is running; zombie processes are not."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_workers_change_nothing_and_end(dataset, tmp_path):
    with training_batches(dataset.train, 3, BATCH, workers=2, first=2) as batches:
        found = list(itertools.islice(batches, 2 * PER_EPOCH))
        workers = [child.pid for child in multiprocessing.active_children()]
        assert len(workers) == 2
        for pid in workers:  # as Ctrl-C and schedulers signal the whole group
            os.kill(pid, signal.SIGINT)
            os.kill(pid, signal.SIGTERM)
        found += list(itertools.islice(batches, 2))
    assert_equal(found, take(dataset.train, 2 * PER_EPOCH + 2, first=2))
    assert not any(map(is_alive, workers))


def test_an_error_in_a_worker_is_that_error_here(tmp_path, monkeypatch):
    monkeypatch.setattr("multipath_jax.data.datasets._SAMPLE", 1)  # the first, not damaged
    bad = {index: {"image": b"not an image"} for index in range(8, TRAIN)}
    split = damaged(tmp_path, bad).train
    with (
        training_batches(split, 3, BATCH, workers=1) as batches,
        pytest.raises(
            UserError, match=r"^record \d+ of 'train' .* \(not an image of a known format"
        ),
    ):
        list(batches)
    assert not multiprocessing.active_children()


PROGRAM = """
import multiprocessing, sys
from multipath_jax.data import open_encoded
from multipath_jax.data.loader import training_batches
if __name__ == "__main__":
    split = open_encoded("photos", sys.argv[1], 16).train
    with training_batches(split, 0, 4, workers=2) as batches:
        next(batches), next(batches)
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        while True:
            next(batches)
"""


def test_a_script_that_runs_again_in_a_worker_is_refused(dataset, monkeypatch):
    """A process has this attribute while it imports the script that has started it."""
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    message = r"runs the whole script again; .* under if __name__ == .* or use dataset.workers=0"
    with pytest.raises(UserError, match=message):
        take(dataset.train, 1, workers=1)
    assert len(take(dataset.train, 1, workers=0)) == 1


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (-9, "was killed, most likely for lack of memory; use fewer workers"),
        (1, "failed, with exit status 1 .* must do its work under if __name__ =="),
        (-11, "failed, with exit status -11 "),
    ],
)
def test_the_end_of_a_worker_is_explained(status, message):
    def ended():
        raise RuntimeError(f"Worker process was terminated unexpectedly with exit code {status}. x")
        yield

    with pytest.raises(UserError, match=message):
        list(loader._surviving(ended()))


@pytest.mark.slow
def test_a_script_without_a_guard_ends_with_the_advice(data_dir, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(PROGRAM.replace('__name__ == "__main__"', "True"))
    command = [sys.executable, str(script), str(data_dir)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert found.returncode == 1
    assert "UserError: a process that this script has started runs the whole" in found.stderr
    assert "must do its work under if __name__" in found.stderr.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_no_worker_outlives_a_run_that_is_killed(data_dir):
    command = [sys.executable, "-c", PROGRAM, str(data_dir)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    workers = [int(pid) for pid in process.stdout.readline().split()]
    assert len(workers) == 2
    assert all(map(is_alive, workers))
    process.kill()
    process.communicate()
    wait_until(lambda: not any(map(is_alive, workers)))


@pytest.mark.slow
@pytest.mark.parametrize("size", [{}, {"width": SIZE, "height": SIZE}], ids=["rescaled", "as is"])
def test_memory_stays_flat_over_ten_thousand_steps(tmp_path, size):
    """Memory of all processes, after the first thousand steps, which fill caches."""

    def resident() -> int:
        pids = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
        statm = [pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1] for pid in pids]
        return sum(map(int, statm)) * os.sysconf("SC_PAGE_SIZE")

    photos.prepare(tmp_path, photos.rows(TRAIN, **size), photos.rows(2))
    split = open_encoded("photos", tmp_path, SIZE).train
    with training_batches(split, 0, BATCH, workers=2) as batches:
        for _ in range(1000):
            next(batches)
        before = resident()
        for _ in range(9000):
            next(batches)
        # Leaking one batch of 3 kB per step would add up to 28 MB.
        grown = resident() - before
    print(f"{grown / 1e6:.1f} MB")
    assert grown < 10e6
