"""Tests of runs that are imported from a file; an invalid file leaves no workdir."""

import shutil
import sys

import definitions
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from command_line import refusal
from etils import epath
from PIL import Image

import multipath_jax as mp
from multipath_jax import checkpoints as ckpt
from multipath_jax import export, import_weights, predict
from multipath_jax.config.keys import default_config
from multipath_jax.errors import UserError
from multipath_jax.training.run import first_carry
from multipath_jax.training.setup import Setup
from multipath_jax.training.state import TrainState
from multipath_jax.training.step import Batch, make_prepare

CLOSE = {"rtol": 1e-4, "atol": 1e-4}  # float32 sums in another order


@pytest.fixture(scope="module")
def run(imported):
    return mp.load_run(imported)


@pytest.fixture(scope="module")
def expected(arrays, run):
    """Logits of test images, by the definition and with the given normalization."""
    images = np.float32(run.test(32).images) / 255
    x = (images.transpose(0, 3, 1, 2) - 0.25) / 0.5
    return definitions.resnet8(definitions.Net(arrays), x)


def saved(state, path):
    safetensors.numpy.save_file(state, path)
    return path


def test_the_run_computes_what_the_file_s_network_did(run, expected):
    assert run.config.model.options == "shortcut=centered"
    np.testing.assert_allclose(run.logits(run.test(32).images), expected, **CLOSE)


def test_zeros_behind_are_another_network(file, run, expected):
    """With zeros behind the channels (shortcut=identity), all arrays fit, but the logits differ."""
    network, variables = mp.load_weights(file, "ResNet8", image_shape=(8, 8, 1))
    other = mp.create_model("ResNet8", shortcut="identity")
    x = run.prepare(run.test(32).images)
    np.testing.assert_allclose(network.apply(variables, x), expected, **CLOSE)
    assert np.abs(np.asarray(other.apply(variables, x)) - expected).max() > 0.1


def test_it_is_evaluated(run):
    test = run.test()
    right = np.argmax(run.logits(test.images), 1) == test.labels
    assert run.evaluate()["error"] == pytest.approx(100 * (1 - right.mean()))


def test_training_is_normalized_alike(run):
    """Training and evaluation normalize images by the mean and deviation in the config."""
    setup = Setup(run.config)
    few, labels = run.test(4).images, run.test(4).labels
    prepare = make_prepare(setup.dataset, shift=0, flip=False)
    rng = jax.random.key_data(jax.random.key(0))
    state = TrainState(jnp.int32(0), params={}, collections={}, opt_state=(), rng=rng)
    batch = Batch(jnp.asarray(few), jnp.asarray(labels))
    np.testing.assert_array_equal(prepare(state, batch), run.prepare(few))
    np.testing.assert_allclose(run.prepare(few), (few / 255 - 0.25) / 0.5, **CLOSE)
    assert (setup.description.mean, setup.description.std) == ([0.25], [0.5])


def test_it_is_exported_and_asked_about_pictures(run, imported, expected, tmp_path, capsys):
    images = run.test(32).images
    network = jax.export.deserialize(bytearray(export.artifact(run)))
    np.testing.assert_allclose(network.call(images), expected, **CLOSE)
    Image.fromarray(images[0, :, :, 0]).save(tmp_path / "one.png")
    assert predict.main([f"--workdir={imported}", str(tmp_path / "one.png")]) == 0
    best = run.description.class_names[int(np.argmax(expected[0]))]
    assert capsys.readouterr().out.split("one.png")[1].split()[0] == best


def config_of(data_dir, source, **changes):
    config = default_config()
    config.model.name, config.model.options = "ResNet8", "shortcut=centered"
    config.dataset.data_dir, config.init_from = str(data_dir), str(source)
    config.update_from_flattened_dict(changes)
    return config


@pytest.mark.parametrize("source", ["imported", "file"])
def test_training_starts_from_it(source, request, data_dir, run):
    config = config_of(data_dir, request.getfixturevalue(source))
    fresh = Setup(config).abstract_carry.state.variables
    ckpt.check_source(run.workdir.parent / "other", config, variables=fresh)
    started, found = ckpt.initialize_from(config, run.variables)
    assert found.lines == [
        "missing there, so fresh: none",
        "of another shape, so fresh: none",
        "extra there, so unused: none",
    ]
    np.testing.assert_array_equal(
        started["params"]["dense"]["dense"]["kernel"],
        run.variables["params"]["dense"]["dense"]["kernel"],
    )


@pytest.mark.parametrize(
    ("source", "options", "other"),
    [("imported", "shortcut=identity", "identity"), ("file", "", "projection")],
)
def test_other_shortcuts_are_refused(source, options, other, request, data_dir, run):
    source = request.getfixturevalue(source)
    config = config_of(data_dir, source, **{"model.options": options})
    match = rf"shortcut=centered, not shortcut={other}.*options=shortcut=centered"
    with pytest.raises(UserError, match=match):
        ckpt.initialize_from(config, run.variables)


def test_the_option_of_a_file_without_metadata_can_be_given(file, data_dir, run):
    config = config_of(data_dir, file, **{"model.options": "shortcut=identity"})
    ckpt.initialize_from(config, run.variables)
    network, _ = mp.load_weights(file, "ResNet8", image_shape=(8, 8, 1), shortcut="identity")
    assert "shortcut='identity'" in repr(network)


def test_other_names_of_the_classes_are_logged(imported, file, data_dir, run, tmp_path):
    """In a run from a run, and from a file with metadata; a file without names has no line."""
    names = [str(number) for number in range(10)]
    written = mp.save_weights(imported, tmp_path / "written.safetensors")
    for source, known in ((imported, True), (written, True), (file, False)):
        _, found = ckpt.initialize_from(config_of(data_dir, source), run.variables)
        assert found.other_classes(names) == []
        (line,) = found.other_classes(names[::-1]) or [""]
        there, here = "0, 1, 2, 3, 4 and 5 more there", "9, 8, 7, 6, 5 and 5 more here"
        assert line.startswith("the last layer is kept") == known
        assert (there in line and here in line) == known


@pytest.mark.slow
def test_it_goes_on_training(imported, tmp_path):
    """Training resumes from the checkpoint of step 0."""
    workdir = shutil.copytree(imported, tmp_path / "run")
    config = mp.load_run(workdir).config
    result = mp.Trainer(config).fit(workdir, until="1 step")
    assert result.step == 1


def test_other_classes(arrays, data_dir, tmp_path, run, capsys):
    other = arrays | {
        "linear.weight": np.ones((7, 64), np.float32),
        "linear.bias": np.ones(7, np.float32),
    }
    path = saved(other, tmp_path / "other.safetensors")
    said = "dense/dense starts afresh: 7 classes there and 10 here"
    started, found = ckpt.initialize_from(config_of(data_dir, path), run.variables)
    assert found.lines[0] == said
    for leaf in ("kernel", "bias"):
        np.testing.assert_array_equal(
            started["params"]["dense"]["dense"][leaf],
            run.variables["params"]["dense"]["dense"][leaf],
        )
    _, variables = mp.load_weights(path, "ResNet8", image_shape=(8, 8, 1))
    assert variables["params"]["dense"]["dense"]["bias"].shape == (7,)
    flags = [f"--from={path}", "--model=ResNet8", f"--data_dir={data_dir}"]
    assert import_weights.main([*flags, f"--workdir={tmp_path / 'run'}"]) == 0
    printed = capsys.readouterr().out
    assert said in printed
    assert "normalized by the mean and deviation of digits; if the weights" in printed


# --- What is refused ------------------------------------------------------------------------------

WRONG = {
    "cut off": (lambda content: content[: len(content) // 2], "no whole file of its kind"),
    "empty": (lambda content: b"", "no whole file of its kind"),
    "a picture": (lambda content: b"\x89PNG\r\n\x1a\n" + content, "no whole file of its kind"),
}


@pytest.mark.parametrize("case", WRONG)
def test_damaged_files(case, file, tmp_path, capsys, monkeypatch):
    change, said = WRONG[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(change(file.read_bytes()))
    flags = [f"--from={path}", "--model=ResNet8", f"--workdir={tmp_path / 'run'}"]
    assert said in refusal(import_weights, flags, capsys, monkeypatch)
    assert not (tmp_path / "run").exists()


def deeper(arrays):
    return definitions.drawn(lambda net, x: definitions.cifar_resnet(net, x, 14), X)


X = np.zeros((1, 1, 8, 8), np.float32)
OTHERS = {
    "a deeper one": (deeper, "extra there: layer1.1.bn1.bias, "),
    "one renamed": (
        lambda arrays: {key.replace("conv1", "convolution1"): v for key, v in arrays.items()},
        "missing there: conv1.weight (nearest there: convolution1.weight), ",
    ),
    "one reshaped": (
        lambda arrays: arrays | {"conv1.weight": np.zeros((16, 1, 5, 5), np.float32)},
        "of another shape: conv1.weight (16, 1, 5, 5) there and (16, 1, 3, 3) here",
    ),
    "another one": (lambda arrays: {"a": X}, "nothing in it fits this network"),
    "integers": (lambda arrays: {"num_batches_tracked": np.array(1)}, "is no state dict"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_files_of_other_networks(case, arrays, data_dir, tmp_path, capsys, monkeypatch):
    change, said = OTHERS[case]
    path = saved(change(arrays), tmp_path / "model.safetensors")
    flags = [f"--from={path}", "--model=ResNet8", f"--workdir={tmp_path / 'run'}"]
    flags.append(f"--data_dir={data_dir}")
    message = refusal(import_weights, flags, capsys, monkeypatch)
    assert said in message
    assert not (tmp_path / "run").exists()
    config = config_of(data_dir, path)
    fresh = Setup(config).abstract_carry.state.variables
    with pytest.raises(UserError) as caught:
        ckpt.check_source(epath.Path(tmp_path), config, variables=fresh)
    assert said in str(caught.value)


FLAGS = {
    "no network": ([], "does not say of which network it is; name it, such as ResNet18"),
    "no such network": (["--model=ResNet9"], "6k+2"),
    "no such file": (["--model=ResNet8", "--from=/nowhere.safetensors"], "cannot be read (No such"),
    "no such folder": (["--model=ResNet8", "--from=/nowhere"], "is no file of weights"),
    "no such address": (["--model=ResNet8", "--from=hub://a/b"], "no access to hub://"),
    "two means": (["--model=ResNet8", "--mean=1,2", "--std=1,2"], "2 numbers, and the images of"),
    "no deviation": (["--model=ResNet8", "--mean=1"], "1 numbers and dataset.std 0"),
    "deviation zero": (["--model=ResNet8", "--mean=1", "--std=0"], "must be positive"),
    "words": (["--model=ResNet8", "--mean=a", "--std=1"], "is not of the form 0.485"),
    "infinite": (["--model=ResNet8", "--mean=inf", "--std=1"], "must be finite"),
    "number of classes": (
        ["--model=ResNet8", "--options=num_classes=3"],
        "--options: num_classes is given by the data set; remove it",
    ),
    "a run": (["--model=ResNet8", "--workdir=RUN"], "holds a run already; use another"),
}


@pytest.mark.parametrize("case", FLAGS)
def test_bad_flags(case, file, imported, data_dir, tmp_path, capsys, monkeypatch):
    flags, said = FLAGS[case]
    given = [f"--from={file}", f"--workdir={tmp_path / 'run'}", f"--data_dir={data_dir}", *flags]
    given = [flag.replace("RUN", str(imported)) for flag in given]
    before = sorted(imported.rglob("*"))
    assert said in refusal(import_weights, given, capsys, monkeypatch)
    assert not (tmp_path / "run").exists()
    assert sorted(imported.rglob("*")) == before


def test_a_state_dict_without_pytorch(file, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    path = tmp_path / "model.pth"
    path.write_bytes(file.read_bytes())
    flags = [f"--from={path}", "--model=ResNet8", f"--workdir={tmp_path / 'run'}"]
    assert "pip install 'multipath_jax[torch]'" in refusal(
        import_weights, flags, capsys, monkeypatch
    )


def test_the_recipe_for_fine_tuning_starts_from_a_file(tmp_path):
    """A folder with images of three classes, a network grown to two paths, and a new head."""
    rng = np.random.default_rng(0)
    for index in range(30):
        folder = tmp_path / "images" / ("train" if index < 24 else "test") / "abc"[index % 3]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    arrays = definitions.drawn(definitions.resnet8, np.zeros((1, 3, 32, 32), np.float32))
    config = mp.recipes.finetune("ResNet8-2-CC")
    config.dataset.source = str(tmp_path / "images")
    config.init_from = str(saved(arrays, tmp_path / "resnet8.safetensors"))
    config.model.options = "shortcut=centered"
    config.finetune.head_first = "1 epoch"
    config.batch_size = 8
    setup = Setup(config)
    carry, notes = first_carry(setup, config)
    assert "only dense is trained up to step 3" in notes
    assert any(note.endswith("starts afresh: 10 classes there and 3 here") for note in notes)
    assert any(note.startswith("growing from 1 path to 2") for note in notes)
    (stem,) = (leaf for leaf in jax.tree.leaves(carry.state.params["stem"]) if leaf.ndim == 4)
    np.testing.assert_array_equal(stem, arrays["conv1.weight"].transpose(2, 3, 1, 0))
