"""Users' names in figures are drawn literally."""

import os

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from multipath_jax.utils import lettering
from multipath_jax.utils.names import printable

IN_ANOTHER_FONT = "ⓐ"  # not in DejaVu Sans, but in STIX; both come with matplotlib
IN_NONE = "\U0010ffff"


def _drawn(tmp_path, text, **properties) -> np.ndarray:
    figure = Figure(figsize=(4, 1))
    figure.text(0.1, 0.5, text, **properties)
    lettering.save(figure, tmp_path / "text.png", 100)
    with Image.open(tmp_path / "text.png") as image:
        return np.asarray(image.convert("L"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (os.fsdecode(b"caf\xe9 \xff"), r"caf\xe9 \xff"),
        ("a\nb\tc\x1b[1m", r"a\nb\tc\x1b[1m"),
        ("\ud83d", r"\ud83d"),
        ("café 猫 $x$ _", "café 猫 $x$ _"),
    ],
)
def test_what_is_no_text_is_escaped(name, expected):
    assert printable(name) == expected
    expected.encode()


@pytest.mark.parametrize("name", ["$x$", "$unknown{$", "a$", "$$"])
def test_a_dollar_is_a_dollar(tmp_path, name):
    found = _drawn(tmp_path, name, **lettering.as_written(name))
    expected = _drawn(tmp_path, name.replace("$", r"\$"))  # escaped for matplotlib's math mode
    np.testing.assert_array_equal(found, expected)


def test_a_font_that_has_the_characters_is_taken(tmp_path):
    found = _drawn(tmp_path, IN_ANOTHER_FONT, **lettering.as_written(IN_ANOTHER_FONT))
    expected = _drawn(tmp_path, IN_ANOTHER_FONT, fontfamily="STIXGeneral")
    np.testing.assert_array_equal(found, expected)
    assert (found != _drawn(tmp_path, IN_ANOTHER_FONT)).any()  # a box for the missing character


def test_other_names_keep_the_default_font():
    assert lettering.as_written("plain")["fontfamily"] == ["sans-serif"]


def test_characters_that_no_font_has_are_boxes_without_warnings(tmp_path):
    """Fails on warnings, which are errors in the tests."""
    assert (_drawn(tmp_path, IN_NONE, **lettering.as_written(IN_NONE)) < 128).any()


def test_every_name_is_in_the_legend(tmp_path):
    names = ["_", "_nolegend_", "$x$", "plain", IN_ANOTHER_FONT]
    figure = Figure()
    axes = figure.subplots()
    for _ in names:
        axes.plot([1, 2])
    legend = lettering.legend(axes, axes.get_lines(), names)
    assert [text.get_text() for text in legend.get_texts()] == names
    assert not any(text.get_parse_math() for text in legend.get_texts())
    lettering.save(figure, tmp_path / "legend.png", 50)
