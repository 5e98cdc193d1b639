import json

import pytest
from matplotlib.text import Text
from PIL import Image

from multipath_jax import curves, metrics_file


def write(workdir, lines):
    workdir.mkdir()
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (workdir / metrics_file.METRICS_FILE).write_text(text)


def line(epoch, routers=0, paths=0):
    values = {
        "step": epoch * 10,
        "epoch": float(epoch),
        "train/loss": 2 / (epoch + 1),
        "train/error": 9.0,
    }
    if epoch % 2 == 0:
        values |= {"test/loss": 1.0, "test/error": None}  # null: not finite
    for router in range(1, routers + 1):
        name = f"routing/router_{router}"
        values |= {f"{name}/entropy": 0.5}
        values |= {f"{name}/share_{j}": 1 / paths for j in range(1, paths + 1)}
    return values


def size(workdir):
    (path,) = curves.draw(workdir)
    with Image.open(path) as image:
        return image.size


def test_without_measurements_there_is_nothing_to_draw(workdir):
    assert curves.draw(workdir) == []


def test_a_network_without_routers(workdir):
    write(workdir, [line(epoch) for epoch in range(1, 5)])
    width, height = size(workdir)
    assert width > 2 * height  # one row


def test_every_router_has_its_panel(workdir):
    write(workdir, [line(epoch, routers=12, paths=9) for epoch in range(1, 5)])
    width, _ = size(workdir)
    assert width >= 12 * 300


def test_routers_of_any_name_are_drawn_as_they_are(workdir, monkeypatch):
    lines = [
        {"step": step, "epoch": float(step), "routing/$own$/entropy": 0.5}
        | {"routing/$own$/share_1": 1.0}
        for step in (1, 2)
    ]
    write(workdir, lines)
    drawn = []
    save = curves.lettering.save
    monkeypatch.setattr(
        curves.lettering, "save", lambda figure, *rest: (drawn.append(figure), save(figure, *rest))
    )
    curves.draw(workdir)
    texts = [text for text in drawn[0].findobj(Text) if text.get_text() == "$own$"]
    assert len(texts) == 2  # in the legend and in the title of a panel
    assert not any(text.get_parse_math() for text in texts)


def test_one_point_is_enough(workdir):
    write(workdir, [line(2, routers=2, paths=2)])
    (path,) = curves.draw(workdir)
    assert path.stat().length > 0


def test_a_line_that_lacks_its_epoch_is_passed_over(workdir):
    write(workdir, [line(1), line(2), {"step": 25, "train/loss": 1.0}])
    assert curves._series(metrics_file.read_metrics(workdir), "train/loss") == (
        [1.0, 2.0],
        [1.0, 2 / 3],
    )
    assert curves.draw(workdir)


@pytest.mark.parametrize(("split", "name"), [("test", "test"), ("held_out", "held-out")])
def test_curves_are_named_by_what_was_evaluated(split, name, workdir, monkeypatch):
    """The last line of the metrics has no evaluation."""
    drawn = []
    monkeypatch.setattr(curves, "_lines", lambda axes, lines, names, label: drawn.append(names))
    renamed = [
        {key.replace("test/", f"{split}/"): value for key, value in line(epoch).items()}
        | ({f"{split}/error": 5.0} if epoch == 2 else {})
        for epoch in range(1, 4)
    ]
    write(workdir, renamed)
    curves.draw(workdir)
    assert drawn == [
        {f"train/{measure}": "training", f"{split}/{measure}": name}
        for measure in ("loss", "error")
    ]


def test_every_data_set_has_a_curve(workdir, monkeypatch):
    drawn = []
    monkeypatch.setattr(curves, "_lines", lambda axes, lines, names, label: drawn.append(names))
    more = {
        f"test/{name}/{measure}": 1.0 for name in ("a", "b/c:1") for measure in ("error", "loss")
    }
    write(workdir, [line(epoch) | more for epoch in (1, 2)])
    curves.draw(workdir)
    loss, error = drawn
    assert list(loss)[2:] == ["test/a/loss", "test/b/c:1/loss"]
    assert [*error.values()] == ["training", "test", "a", "b/c:1"]
