"""Tests of `multipath_jax.figures` as a program: all figures of a run, seeds, error messages."""

import base64
import dataclasses
import json
import re

import numpy as np
import pytest
import small_networks
from command_line import refusal
from etils import epath
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from multipath_jax.config.keys import default_config
from multipath_jax.data import Dataset, Split, describe
from multipath_jax.errors import Failure
from multipath_jax.figures import __main__ as figures
from multipath_jax.figures import inputs as inputs_lib
from multipath_jax.parallel import compilation
from multipath_jax.runs import LoadedRun

PICTURES = {
    "routes",
    "maximize",
    "histograms",
    "weights",
    "tradeoff",
    "classes",
    "clusters",
    "ablation",
}
NUMBERS = {"weights", "clusters", "ablation"}


def loaded(workdir, trained, name):
    """A run as returned by `load_run`, with an empty workdir."""
    split = Split(small_networks.images(30)[..., :1], small_networks.labels(30))
    dataset = Dataset(
        "random",
        split,
        split,
        small_networks.CLASSES,
        small_networks.MEAN[:1],
        small_networks.STD[:1],
    )
    config = default_config()
    config.model.name, config.compilation_cache = name, ""
    run = LoadedRun(
        epath.Path(workdir), config, 10, trained.model, trained.variables, describe(dataset)
    )
    run.__dict__["dataset"] = dataset
    return run


@pytest.fixture(autouse=True)
def quick_tradeoff(monkeypatch):
    """Replaces drawing the tradeoff figure, which takes seconds and is tested separately."""
    monkeypatch.setattr(figures.plot, "draw", lambda path, panels: path.write_text(str(panels)))


@pytest.fixture
def routed(monkeypatch, tmp_path):
    run = loaded(tmp_path, small_networks.network(channels=1), "Small-2-CC")
    monkeypatch.setattr(figures, "load_run", lambda workdir, checkpoint: run)
    return tmp_path


@pytest.fixture
def unrouted(monkeypatch, tmp_path):
    run = loaded(tmp_path, small_networks.without_routers(channels=1), "Small")
    monkeypatch.setattr(figures, "load_run", lambda workdir, checkpoint: run)
    return tmp_path


def run(*argv):
    assert figures.main(["--workdir=RUN", *argv]) == 0


def test_every_figure_is_drawn_and_the_same_seed_draws_the_same(routed, capsys):
    argv = ("--steps=3", "--gates=2:1-2,1:1-1", "--classes=cat,0", "--images=3,5-6")
    for folder in ("a", "b"):
        run(*argv, f"--out={routed / folder}")
    files = {path.name for path in (routed / "a").iterdir()}
    assert files == {f"{x}.png" for x in PICTURES} | {f"{x}.json" for x in NUMBERS}
    for name in files:
        assert (routed / "a" / name).read_bytes() == (routed / "b" / name).read_bytes(), name
    said = capsys.readouterr().out.splitlines()
    assert sum(line.startswith(f"wrote {routed}") for line in said) == 2 * len(files)
    assert any(line.startswith("error ") and "as trained" in line for line in said)
    for name in PICTURES - {"tradeoff"}:
        with Image.open(routed / "a" / f"{name}.png") as picture:
            assert 500 <= picture.width <= 1600
            assert len(np.unique(np.asarray(picture.convert("L")))) > 20  # not an empty picture


def test_figures_go_into_the_workdir_and_replace_older_ones(routed):
    for _ in range(2):
        run("--only=histograms,weights", "--limit=20")
    files = sorted(path.name for path in (routed / "figures").iterdir())
    assert files == ["histograms.png", "weights.json", "weights.png"]
    layers = json.loads((routed / "figures" / "weights.json").read_text())
    assert [layer["layer"] for layer in layers] == ["stage_1/conv_1/conv", "dense_1/dense"]
    assert all(0 < layer["distance"] < 1 for layer in layers)


def test_all_on_one_page(routed):
    run("--only=histograms,weights", "--html", "--html_images=7", "--limit=20")
    page = (routed / "figures" / "report.html").read_text()
    (data,) = re.findall(r'<script type="application/json" id="data">(.*)</script>', page)
    data = json.loads(data)
    assert dict(data["facts"])["network"] == "Small-2-CC"
    assert [figure["title"][:5] for figure in data["figures"]] == ["Gates", "Weigh"]
    images, test = data["explorer"]["images"], figures.load_run(None, None).dataset.test
    assert images["total"] == 30
    assert (len(images["numbers"]), images["numbers"][-1]) == (7, 29)
    labels = np.frombuffer(base64.b64decode(images["labels"]), "<u2")
    np.testing.assert_array_equal(labels, test.labels[images["numbers"]])


def inputs_of(*argv):
    return inputs_lib.FigureInputs(
        figures.load_run(None, None), figures.parse(["--workdir=RUN", *argv])
    )


@pytest.mark.parametrize("limit", ["", "--limit=4"])
def test_fewer_images_are_evenly_spaced_and_keep_their_numbers(routed, capsys, monkeypatch, limit):
    if not limit:  # as of a folder
        monkeypatch.setattr(inputs_lib, "EncodedSplit", Split)
        monkeypatch.setattr(inputs_lib, "MOST", 4)
    inputs = inputs_of("--images=25", *filter(None, [limit]))
    test = inputs.run.dataset.test
    np.testing.assert_array_equal(inputs.test.images, test.images[[0, 10, 19, 29]])
    np.testing.assert_array_equal(inputs.test.labels, test.labels[[0, 10, 19, 29]])
    more = "" if limit else "; --limit=N for more"
    assert capsys.readouterr().out == f"4 of 30 test images, evenly spaced{more}\n"
    ((image, what),) = inputs.pictures
    np.testing.assert_array_equal(image, test.images[25])
    assert what == f"test image 25: {small_networks.CLASSES[test.labels[25]]}"


def test_routes_are_of_three_images_or_of_all_if_there_are_fewer(routed):
    inputs = inputs_of("--limit=1")
    assert [what.partition(":")[0] for _, what in inputs.pictures] == [
        f"test image {number}" for number in range(3)
    ]
    inputs, test = inputs_of(), inputs.run.dataset.test
    few = dataclasses.replace(inputs.run.dataset, test=Split(test.images[:2], test.labels[:2]))
    inputs.run.__dict__["dataset"] = few
    assert len(inputs.pictures) == 2


def test_a_cache_folder_of_another_machine_is_not_used(routed, monkeypatch):
    figures.load_run(None, None).config.compilation_cache = "/dev/null/there"
    enabled = []
    monkeypatch.setattr(compilation, "enable_compilation_cache", enabled.append)
    run("--only=tradeoff")
    assert enabled == ["auto"]


def test_images_that_were_held_out_are_called_so(routed, capsys, monkeypatch):
    """On the page, in the figures and in error messages."""
    figures.load_run(None, None).config.dataset.holdout = 30
    written, save = [], Figure.savefig

    def saved(figure, *arguments, **options):
        written.extend(text.get_text() for text in figure.findobj(Text))
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", saved)
    run("--only=routes,maximize,ablation", "--steps=1", "--html")
    assert not [text for text in written if re.search(r"\btest\b", text)]
    for words in (
        "held-out image 0: ",
        "highest of a held-out image",
        "change of the held-out error",
    ):
        assert any(words in text for text in written), words
    page = (routed / "figures" / "report.html").read_text()
    assert "Routes of the held-out images" in page
    assert "<label>Held-out image <" in page
    (data,) = re.findall(r'<script type="application/json" id="data">(.*)</script>', page)
    assert json.loads(data)["explorer"]["images"]["kind"] == "held-out"
    capsys.readouterr()
    said = refusal(figures, ["--workdir=RUN", "--images=30"], capsys, monkeypatch)
    assert "30 is not in the held-out images 0 to 29" in said


def test_pictures_of_ones_own_need_no_data(routed, monkeypatch):
    figure = routed / "mine.png"
    Image.fromarray(np.full((20, 30, 3), 200, np.uint8)).save(figure)
    monkeypatch.setattr(LoadedRun, "dataset", property(lambda self: 1 / 0))
    run("--only=routes", f"--images={figure}")
    assert (routed / "figures" / "routes.png").exists()


def test_a_network_without_routers_has_what_it_can_have(unrouted, capsys):
    run(f"--out={unrouted}")
    assert [path.name for path in unrouted.iterdir()] == ["tradeoff.png"]
    assert "BaseCNN-2-CC" in (unrouted / "tradeoff.png").read_text()
    said = capsys.readouterr().out
    assert "no figure routes: Small has no routers" in said
    assert "no figure weights: Small has no parallel paths" in said


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--only=rutes"], "no figure 'rutes'; choose routes"),
        (["--only="], "no figure ''"),
        (["--gates=9:1-1"], "does not exist; the network has the routers 1 to 2"),
        (["--gates=all"], "'all' is not a gate; write 2:1-2"),
        (["--classes=dog"], "no class 'dog'"),
        (["--images=30"], "30 is not in the test images 0 to 29"),
        (["--images=nowhere.png"], "nowhere.png cannot be read (No such file"),
        (["--layers=stage_9"], "'stage_9' is not a layer"),
        (["--limit=0"], "--limit=0 must be at least 1"),
        (["--html_images=0"], "--html_images=0 must be at least 1"),
        (["--steps=few"], "invalid int value: 'few'"),
        (["--seed=-1"], "--seed=-1 must be from 0 to 4294967295"),
        (["--seed=4294967296"], "--seed=4294967296 must be from 0 to 4294967295"),
        (["--only=classes", "--layers=x"], "--layers has no effect on classes; it is for weights"),
        (["--only=weights", "--steps=3"], "--steps has no effect on weights; it is for maximize"),
        (["--only=weights,tradeoff", "--images=1"], "no effect on weights, tradeoff; it is for r"),
        (["--html_images=7"], "--html_images has no effect without --html"),
        (["--out=FILE/figures"], "cannot be written"),
        (["--out=/proc"], "--out: /proc cannot be written"),
        (["--out=dangling"], "is a broken link to gone; fix or remove it"),
        (["--out=hf://b/figures"], "no access to hf://"),
        (["--images=~nobody_here/x.png"], "no such home folder"),
        (["--frames=3"], "unrecognized arguments"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(routed, capsys, monkeypatch, argv, message):
    (routed / "FILE").touch()
    (routed / "dangling").symlink_to("gone")
    monkeypatch.chdir(routed)
    assert refusal(figures, ["--workdir=RUN", *argv], capsys, monkeypatch).count(message) == 1
    assert not list(routed.rglob("*.png"))


def test_what_a_network_does_not_allow_is_refused_if_asked_for(unrouted, capsys, monkeypatch):
    said = refusal(figures, ["--workdir=RUN", "--only=tradeoff,ablation"], capsys, monkeypatch)
    assert "no figure ablation: Small has no routers; choose --only=tradeoff" in said


def test_a_figure_without_room_is_an_error_and_the_older_one_stays(routed, monkeypatch):
    run("--only=histograms", "--limit=20")
    drawn = routed / "figures" / "histograms.png"
    before = drawn.read_bytes()

    def full(figure, path, **options):
        path.write_bytes(before[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    with pytest.raises(Failure, match=rf"{drawn} could not be written \(No space left"):
        run("--only=histograms", "--limit=20")
    assert drawn.read_bytes() == before
    assert list(drawn.parent.iterdir()) == [drawn]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--workdir"),
        (["--workdir=hf://a"], "no access"),
        (["--workdir=NOWHERE"], "has no checkpoint"),
    ],
)
def test_a_run_is_needed(capsys, monkeypatch, argv, message):
    assert message in refusal(figures, argv, capsys, monkeypatch)
