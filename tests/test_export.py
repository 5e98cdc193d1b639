"""The exported file: equal logits, where neither this package nor Flax can be imported."""

import dataclasses
import re
import subprocess
import sys
from functools import partial

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import refusal
from weights import random_like

from multipath_jax import create_model, export, list_models
from multipath_jax.errors import Failure
from multipath_jax.models import family_of
from multipath_jax.runs import load_run

BATCHES = (1, 3, 8)

# The usage that the program prints, in a process without this package.
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
        # Programs for other batch sizes round float32 otherwise.
        np.testing.assert_allclose(found, expected[:count], rtol=1e-4, atol=1e-5)
    assert {path.name for path in tmp_path.iterdir() if "npy" not in path.name} == {"digits.jax"}


def of_name(run, name, shape):
    """A run of another network, its weights random numbers, on images of another shape."""
    model = create_model(name, 10)
    image = jnp.zeros((1, *shape))
    shapes = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), image)
    variables = random_like(shapes, seed=0)
    statistics = {key: np.full(shape[-1], 0.5, np.float32) for key in ("mean", "std")}
    described = dataclasses.replace(run.description, stored_shape=shape, **statistics)
    return dataclasses.replace(run, model=model, variables=variables, description=described)


@pytest.mark.parametrize(("name", "shape"), [("BaseCNN-2-CP", (8, 8, 3)), ("CapsNet", (17, 17, 1))])
def test_other_networks_answer_alike(run, name, shape):
    other = of_name(run, name, shape)
    network = jax.export.deserialize(bytearray(export.artifact(other)))
    assert network.platforms == ("cpu", "cuda", "tpu")
    images = np.random.default_rng(0).integers(0, 256, (3, *shape), np.uint8)
    expected = np.asarray(other.logits(images))
    np.testing.assert_allclose(network.call(images), expected, rtol=1e-4, atol=1e-5)  # as above
    assert expected.std(axis=0).max() > 1e-3  # the images are told apart


@pytest.mark.slow
@pytest.mark.parametrize("name", list_models())
def test_every_network_can_be_exported(run, name):
    # Images of half the size have the same operations.
    height, width, channels = family_of(name).image_shape
    shape = (height // 2, width // 2, channels) if height > 32 else (height, width, channels)
    network = jax.export.deserialize(bytearray(export.artifact(of_name(run, name, shape))))
    assert str(network.out_avals[0].shape) == "(b, 10)"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--workdir=RUN"], "--out"),
        (["--workdir=RUN", "--out=TMP/kept"], "exists already"),
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
    ],
)
def test_bad_input_is_one_line_and_status_2(capsys, monkeypatch, run, tmp_path, argv, message):
    (tmp_path / "kept").write_text("kept")
    places = {"RUN": str(run.workdir), "TMP": str(tmp_path)}
    for name, place in places.items():
        argv = [part.replace(name, place) for part in argv]
    assert message in refusal(export, argv, capsys, monkeypatch)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["kept"]


def test_no_room_to_write_leaves_nothing(run, tmp_path, monkeypatch):
    def full(path, content):
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "artifact", lambda run: b"")
    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    out = tmp_path / "x.jax"
    with pytest.raises(Failure, match=rf"{out} could not be written \(No space left on device\)"):
        export.main([f"--workdir={run.workdir}", f"--out={out}"])
    assert list(tmp_path.iterdir()) == []
