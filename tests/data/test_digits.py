import os
import signal
import subprocess
import sys

import numpy as np
import sklearn.datasets

from multipath_jax.data import digits, load_dataset


def _run(code: str, *arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def _rows(split) -> set[bytes]:
    return {
        image.tobytes() + bytes([label])
        for image, label in zip(split.images, split.labels, strict=True)
    }


def test_holds_every_digit_once_with_its_label(tmp_path):
    data = load_dataset("digits", tmp_path)
    source = sklearn.datasets.load_digits()
    pixels = np.round(source.images * 255 / 16).astype(np.uint8)
    expected = {p.tobytes() + bytes([t]) for p, t in zip(pixels, source.target, strict=True)}
    train, test = _rows(data.train), _rows(data.test)
    assert train | test == expected
    assert not train & test
    assert len(data.train.labels) + len(data.test.labels) == len(source.target) == 1797
    assert data.image_shape == (8, 8, 1)
    assert data.class_names == tuple("0123456789")
    assert data.train.images.max() == 255


def test_a_fifth_of_each_class_is_held_out(tmp_path):
    data = load_dataset("digits", tmp_path)
    train, test = (np.bincount(s.labels, minlength=10) for s in (data.train, data.test))
    np.testing.assert_array_equal(test, (train + test) // 5)
    assert (len(data.train.labels), len(data.test.labels)) == (1442, 355)


def test_preparing_twice_gives_the_same_data_in_the_same_order(tmp_path):
    first, second = (load_dataset("digits", tmp_path / name) for name in "ab")
    np.testing.assert_array_equal(first.train.images, second.train.images)
    np.testing.assert_array_equal(first.test.labels, second.test.labels)


def test_is_prepared_once(tmp_path, monkeypatch):
    load_dataset("digits", tmp_path)
    monkeypatch.setattr(digits, "_png", lambda image: 1 / 0)
    assert len(load_dataset("digits", tmp_path).train.labels) == 1442


def test_needs_no_tensorflow(tmp_path):
    code = (
        "import sys; from multipath_jax.data import load_dataset;"
        "print(len(load_dataset('digits', sys.argv[1]).train.labels), 'tensorflow' in sys.modules)"
    )
    result = _run(code, tmp_path)
    assert result.stdout == "1442 False\n", result.stderr


def test_two_preparing_at_once_both_succeed(tmp_path, monkeypatch):
    encode = digits._png

    def other_process_first(image):
        monkeypatch.setattr(digits, "_png", encode)
        digits.prepare_digits(str(tmp_path))  # completes during the outer preparation
        return encode(image)

    monkeypatch.setattr(digits, "_png", other_process_first)
    digits.prepare_digits(str(tmp_path))
    assert os.listdir(tmp_path / "digits") == ["1.0.0"]
    assert len(load_dataset("digits", tmp_path).test.labels) == 355


def test_an_interrupted_preparation_is_made_good(tmp_path):
    code = (
        "import os, sys; from multipath_jax.data import digits;"
        "digits._held_out = lambda labels: os.kill(os.getpid(), 9);"
        "digits.prepare_digits(sys.argv[1])"
    )
    assert _run(code, tmp_path).returncode == -signal.SIGKILL
    (leftover,) = os.listdir(tmp_path / "digits")
    assert leftover.startswith("incomplete.")
    assert len(load_dataset("digits", tmp_path).test.labels) == 355
