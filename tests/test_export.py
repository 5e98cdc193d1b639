"""The exported file gives equal logits in a process without this package and Flax."""

import hashlib
import re
import subprocess
import sys

import jax
import jax.export
import numpy as np
import pytest
from command_line import refusal
from exports import of_model

from multipath_jax import create_model, export, list_models, to_onnx
from multipath_jax.errors import Failure
from multipath_jax.models import family_of
from multipath_jax.runs import load_run

BATCHES = (1, 3)

# Runs the usage that the program prints, without this package.
BARE = """
import sys
for name in ("multipath_jax", "flax", "orbax", "tensorflow_datasets"):
    sys.modules[name] = None
import numpy as np
images = np.load("images.npy")
{usage}
for count in {batches}:
    np.save(f"logits_{{count}}.npy", jax.jit(network)(images[:count]))
"""


@pytest.fixture(scope="module")
def run(digits_run):
    return load_run(digits_run, dtype="float32")


def test_a_fresh_process_without_this_package_gives_equal_logits(run, tmp_path, capsys):
    out = tmp_path / "digits.jax"
    assert export.main([f"--workdir={run.workdir}", f"--out={out}"]) == 0
    printed = capsys.readouterr().out
    usage = "\n".join(re.findall(r"^    (.*)", printed, re.MULTILINE))
    assert "uint8 [b 8 8 1] -> float32 [b 10]" in usage
    images = run.dataset.test.images[: max(BATCHES)]
    np.save(tmp_path / "images.npy", images)
    code = BARE.format(usage=usage, batches=BATCHES)
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    expected = np.asarray(run.logits(images))
    for count in BATCHES:
        found = np.load(tmp_path / f"logits_{count}.npy")
        assert found.dtype == np.float32
        # Programs for other batch sizes round float32 differently.
        np.testing.assert_allclose(found, expected[:count], rtol=1e-4, atol=1e-5)
    written = {path.name for path in tmp_path.iterdir() if "npy" not in path.name}
    assert written == {"digits.jax", "digits.jax.md"}
    card = (tmp_path / "digits.jax.md").read_text()
    assert usage.replace(f"{tmp_path}/", "") in card
    assert hashlib.sha256(out.read_bytes()).hexdigest() in card


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("BaseCNN-2-CP", (8, 8, 3)),
        pytest.param("CapsNet", (17, 17, 1), marks=pytest.mark.slow),
    ],
)
def test_other_networks_answer_alike(run, name, shape):
    other = of_model(run, create_model(name), shape)
    network = jax.export.deserialize(bytearray(export.artifact(other)))
    assert network.platforms == ("cpu", "cuda", "tpu")
    images = np.random.default_rng(0).integers(0, 256, (3, *shape), np.uint8)
    expected = np.asarray(other.logits(images))
    np.testing.assert_allclose(network.call(images), expected, rtol=1e-4, atol=1e-5)  # as above
    assert expected.std(axis=0).max() > 1e-3  # logits differ between images


@pytest.mark.slow
@pytest.mark.parametrize("name", list_models())
def test_every_network_can_be_exported(run, name):
    # Networks have the same operations for images of half the size.
    height, width, channels = family_of(name).image_shape
    shape = (height // 2, width // 2, channels) if height > 32 else (height, width, channels)
    other = of_model(run, create_model(name), shape)
    network = jax.export.deserialize(bytearray(export.artifact(other)))
    assert str(network.out_avals[0].shape) == "(b, 10)"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--workdir=RUN"], "--out"),
        (["--workdir=RUN", "--out=TMP/kept"], "exists already"),
        (["--workdir=RUN", "--out=TMP/card"], "TMP/card.md exists already"),
        (["--workdir=RUN", "--out=TMP"], "is an existing folder"),
        (["--workdir=RUN", "--out=TMP/no/such.jax"], "not a writable folder (No such file"),
        (["--workdir=RUN", "--out=/proc/x.jax"], "/proc is not a writable folder"),
        (
            ["--workdir=RUN", "--out=gs://b/x.jax"],
            "--out=gs://b/x.jax: must be a path on this machine",
        ),
        (["--workdir=RUN", "--out=~nobody_here/x.jax"], "no such home folder"),
        (["--workdir=hf://a/b", "--out=TMP/x.jax"], "workdir=hf://a/b: no access to hf://"),
        (["--workdir=TMP", "--out=TMP/x.jax"], "has no checkpoint"),
        (["--workdir=RUN", "--out=TMP/x.jax", "--checkpoint=9"], "has no checkpoint '9'"),
        (["--workdir=RUN", "--out=TMP/x.jax", "--dtype=float16"], "float16"),
        (["--workdir=RUN", "--out=TMP/x.pt", "--format=torch"], "torch"),
        (
            ["--workdir=RUN", "--out=TMP/x.onnx", "--format=onnx", "--dtype=bfloat16"],
            "--format=onnx is float32 only; remove --dtype=bfloat16",
        ),
    ],
)
def test_bad_input_is_one_line_and_status_2(capsys, monkeypatch, run, tmp_path, argv, message):
    for kept in ("kept", "card.md"):
        (tmp_path / kept).write_text("kept")
    places = {"RUN": str(run.workdir), "TMP": str(tmp_path)}
    for name, place in places.items():
        argv = [part.replace(name, place) for part in argv]
        message = message.replace(name, place)
    assert message in refusal(export, argv, capsys, monkeypatch)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["kept", "kept"]


def test_onnx_without_its_packages_is_refused(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(to_onnx, "NEEDS", ("json", "no_such_package"))
    argv = [f"--workdir={run.workdir}", f"--out={tmp_path}/x.onnx", "--format=onnx"]
    said = refusal(export, argv, capsys, monkeypatch)
    assert said == "ONNX needs no_such_package: pip install 'multipath_jax[onnx]'"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", ["write_bytes", "write_text"])
def test_no_room_to_write_leaves_nothing(run, tmp_path, monkeypatch, method):
    def full(path, content, **options):
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "artifact", lambda run: b"")
    monkeypatch.setattr(f"pathlib.Path.{method}", full)
    out = tmp_path / "x.jax"
    full_disk = r"could not be written \(No space left on device\)"
    with pytest.raises(Failure, match=rf"{out}(.md)? {full_disk}"):
        export.main([f"--workdir={run.workdir}", f"--out={out}"])
    assert list(tmp_path.iterdir()) == []
