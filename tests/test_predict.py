"""Predictions for images of many formats."""

import dataclasses
import io
import json
import os
import re
import sys

import numpy as np
import pytest
from command_line import refusal
from PIL import Image

from multipath_jax import pictures, predict
from multipath_jax.data.images import BadImage
from multipath_jax.errors import UserError
from multipath_jax.parallel import compilation
from multipath_jax.runs import load_run
from multipath_jax.utils import cli


@pytest.fixture(scope="module")
def run(digits_run):
    return load_run(digits_run)


@pytest.fixture
def folder(tmp_path):
    """A folder with images of many formats and modes, one in a subfolder, and other files."""
    pixels = np.random.default_rng(0).integers(0, 256, (37, 53, 4), np.uint8)
    (tmp_path / "inside").mkdir()
    for name, mode in {
        "a.png": "L",
        "b.jpg": "CMYK",
        "c.PNG": "RGBA",
        "d.gif": "P",
        "inside/e.webp": "RGB",
    }.items():
        Image.fromarray(pixels[..., :3]).convert(mode).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / ".hidden.png").write_text("no picture")
    return tmp_path


LEFT_OUT = "left out: hidden images (1), .txt files (1)\n"
NAMES = ["a.png", "b.jpg", "c.PNG", "d.gif", "inside/e.webp"]


def answer(capsys, run, *argv):
    """Runs the program on a loaded run; returns exit status, lines of stdout, and stderr."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict, "load_run", lambda *_: run)
        status = predict.main([f"--workdir={run.workdir}", *map(str, argv)])
    out, err = capsys.readouterr()
    return status, out.splitlines(), err


def by_hand(run, path):
    """The names of the five most probable classes, by decreasing probability; probabilities."""
    logits = np.float64(run.logits(pictures.read(path, run)[None])[0])
    found = np.exp(logits - logits.max())
    found /= found.sum()
    assert found.max() < 0.99  # otherwise, the others are too small to compare
    order = np.argsort(-found)[:5]
    return [run.description.class_names[index] for index in order], found[order]


def test_a_cache_folder_of_another_machine_is_not_used(capsys, run, folder, monkeypatch):
    config = run.config.copy_and_resolve_references()
    config.compilation_cache = "/dev/null/there"
    enabled = []
    monkeypatch.setattr(compilation, "enable_compilation_cache", enabled.append)
    status, _, _ = answer(capsys, dataclasses.replace(run, config=config), folder / "a.png")
    assert (status, enabled) == (0, ["auto"])


def test_a_folder_is_answered_in_order_by_the_network(capsys, run, folder, monkeypatch):
    monkeypatch.setattr(predict, "BATCH", 2)  # the last of three batches is padded
    status, lines, err = answer(capsys, run, "--json", folder)
    assert (status, err) == (0, LEFT_OUT)
    found = [json.loads(line) for line in lines]
    assert [line["picture"] for line in found] == [str(folder / name) for name in NAMES]
    for line in found:
        names, probabilities = by_hand(run, line["picture"])
        assert [entry["class"] for entry in line["classes"]] == names
        values = [entry["probability"] for entry in line["classes"]]
        # Batches of two images and of one are different programs, which round float32 differently.
        np.testing.assert_allclose(values, probabilities, rtol=1e-4)


def test_the_table_has_the_same_answers_in_columns(capsys, run, folder):
    status, lines, _ = answer(capsys, run, folder)
    assert status == 0
    for line, name in zip(lines, NAMES, strict=True):
        path, rest = line.split(maxsplit=1)
        cells = re.findall(r"(\S+) +([\d.]+) %", rest)
        names, probabilities = by_hand(run, folder / name)
        assert path == str(folder / name)
        assert [cell[0] for cell in cells] == names
        shown = [float(cell[1]) for cell in cells]
        np.testing.assert_allclose(shown, 100 * probabilities, atol=0.051)  # rounded to 0.1
    assert len({line.index("%") for line in lines}) == 1


def test_routes_are_drawn_of_the_first_pictures(capsys, run, folder, monkeypatch):
    monkeypatch.setattr(predict, "DRAWN", 2)
    monkeypatch.setattr(predict, "BATCH", 1)
    heights = []
    for name, what in (("two.png", folder), ("one.png", folder / "a.png")):
        status, _, err = answer(capsys, run, f"--routes={folder / name}", what)
        left_out = LEFT_OUT if what == folder else ""
        assert (status, err) == (0, f"{left_out}wrote {folder / name}\n")
        with Image.open(folder / name) as drawing:
            heights.append(drawing.height)
    assert heights[0] > 1.5 * heights[1]  # stacked vertically, with one legend


def test_fewer_classes_than_five_are_all_there_are():
    assert predict.ranking(np.float32([0.2, 0.5, 0.3]), "abc") == [
        ("b", 0.5),
        ("c", pytest.approx(0.3)),
        ("a", pytest.approx(0.2)),
    ]


def test_what_cannot_be_read_is_named_and_the_others_go_on(capsys, run, folder):
    (folder / "b.jpg").write_text("text")
    cut_off = (folder / "c.PNG").read_bytes()[:200]
    (folder / "c.PNG").write_bytes(cut_off)
    status, lines, err = answer(capsys, run, folder, folder / "missing.png", folder / "notes.txt")
    assert status == 1
    assert [line.split()[0] for line in lines] == [
        str(folder / name) for name in ("a.png", "d.gif", "inside/e.webp")
    ]
    errors = err.removeprefix(LEFT_OUT).splitlines()
    names = ["b.jpg", "c.PNG", "missing.png", "notes.txt"]
    assert len(errors) == len(names)
    for line, name in zip(errors, names, strict=True):
        assert line.startswith(f"error: {folder / name} cannot be read (")


def test_names_that_no_encoding_has_are_answered(run, tmp_path, monkeypatch):
    """In JSON output, the names of files and classes can be decoded to their original bytes."""
    names = [b"caf\xe9.png", "猫.png".encode(), b"a\nb.png", b"$x$.png"]
    for name in names:
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            Image.new("L", (8, 8)).save(file, "png")
    described = dataclasses.replace(
        run.description, class_names=tuple(os.fsdecode(b"\xff%d" % n) for n in range(10))
    )
    monkeypatch.setattr(
        predict, "load_run", lambda *_: dataclasses.replace(run, description=described)
    )

    def printed(*flags, encoding):
        output = io.TextIOWrapper(io.BytesIO(), encoding, write_through=True)  # errors: strict
        monkeypatch.setattr(sys, "stdout", output)
        monkeypatch.setattr(sys, "argv", ["predict", "--workdir=.", *flags, str(tmp_path)])
        with pytest.raises(SystemExit) as ended:
            cli.run(predict.main)
        assert ended.value.code == 0
        return output.buffer.getvalue().decode(encoding).splitlines()

    found = [json.loads(line) for line in printed("--json", encoding="utf-8")]
    assert {os.fsencode(line["picture"]) for line in found} == {
        os.path.join(os.fsencode(tmp_path), name) for name in names
    }
    assert {os.fsencode(c["class"]) for c in found[0]["classes"]} < {
        b"\xff%d" % n for n in range(10)
    }
    routes = tmp_path / "routes.pdf"
    lines = printed(f"--routes={routes}", encoding="ascii")
    assert len(lines) == len(names)
    shown = {line.split("  ")[0].removeprefix(f"{tmp_path}/") for line in lines}
    assert shown == {r"caf\xe9.png", r"\u732b.png", r"a\nb.png", "$x$.png"}
    assert r"\xff" in lines[0]
    assert routes.exists()


def test_a_picture_is_never_drawn_over(run, folder):
    before = (folder / "a.png").read_bytes()
    with pytest.raises(UserError, match="exists already"):
        predict.main([f"--workdir={run.workdir}", f"--routes={folder / 'a.png'}", "x.png"])
    assert (folder / "a.png").read_bytes() == before


def test_nothing_that_can_be_read_is_no_answer(capsys, run, folder):
    status, lines, _ = answer(capsys, run, folder / "notes.txt")
    assert (status, lines) == (1, [])


def test_a_picture_of_the_data_set_s_own_is_seen_as_it_is(run, tmp_path):
    image = run.dataset.test.images[3]
    Image.fromarray(image[..., 0]).save(tmp_path / "digit.png")
    np.testing.assert_array_equal(pictures.read(tmp_path / "digit.png", run), image)


def test_a_large_picture_is_rescaled_whole(run, tmp_path):
    image = Image.new("RGB", (1600, 900), (200, 10, 60))
    image.save(tmp_path / "large.jpg", quality=95)
    grey = np.asarray(image.convert("L"))[0, 0]
    found = pictures.read(tmp_path / "large.jpg", run)
    assert found.shape == (8, 8, 1)
    assert abs(found.astype(int) - grey).max() <= 2  # JPEG is lossy


def test_why_a_picture_cannot_be_read(run, tmp_path):
    with pytest.raises(BadImage, match="No such file"):
        pictures.read(tmp_path / "missing.png", run)
    with pytest.raises(BadImage, match="Is a directory"):
        pictures.read(tmp_path, run)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "float32"}, "trained on float32 pixels"),
        ({"stored_shape": (8, 8, 5)}, "takes 5 channels, which image files do not have"),
    ],
)
def test_a_network_whose_pixels_no_file_has(run, tmp_path, changes, message):
    other = dataclasses.replace(run, description=dataclasses.replace(run.description, **changes))
    with pytest.raises(UserError, match=message):
        pictures.read(tmp_path / "x.png", other)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--workdir=RUN"], "IMAGE"),
        (["x.png"], "--workdir"),
        (["--workdir=EMPTY", "x.png"], "has no checkpoint"),
        (["--workdir=RUN", "--checkpoint=9", "x.png"], "has no checkpoint '9'"),
        (["--workdir=RUN", "EMPTY"], "has no images"),
        (["--workdir=RUN", "--routes=EMPTY/x.txt", "x.png"], ".png, .pdf or .svg"),
        (["--workdir=RUN", "--routes=EMPTY/no/x.png", "x.png"], "not a writable folder"),
        (["--workdir=RUN", "--routes=gs://b/x.png", "x.png"], "must be a path on this machine"),
        (["--workdir=hf://a/b", "x.png"], "no access to hf://"),
        (["--workdir=RUN", "--jsn", "x.png"], "--jsn"),
    ],
)
def test_bad_input_is_one_line_and_status_2(capsys, monkeypatch, run, tmp_path, argv, message):
    places = {"RUN": str(run.workdir), "EMPTY": str(tmp_path)}
    for name, place in places.items():
        argv = [part.replace(name, place) for part in argv]
    assert message in refusal(predict, argv, capsys, monkeypatch)
