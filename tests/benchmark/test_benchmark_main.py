"""The flags of the benchmark, its table, JSON file and figure."""

import itertools
import json

import pytest
from command_line import refusal

from multipath_jax.benchmark import __main__ as benchmark
from multipath_jax.benchmark import report
from multipath_jax.benchmark.process_pool import WorkerFailed
from multipath_jax.benchmark.rows import Part, Row, Target, at_least, at_most, exactly
from multipath_jax.benchmark.timing import OutOfTime, Spread

ROWS = [
    Row("A", "b / c", Spread(1.04, 1.0, 1.1), at_most(1.05), {"b ms": 1234.5, "b peak MB": None}),
    Row("B", "b / c", Spread(1.2, 1.1, 1.3), at_most(1.05)),
    Row("C", "b / c", None, at_least(8.0), note="not measured: nobody was there"),
]


def failing(settings, case):
    if case == "this":
        yield ROWS[0]
        raise RuntimeError("broken on purpose")
    yield ROWS[1]


@pytest.fixture
def parts(monkeypatch):
    monkeypatch.setattr(
        benchmark,
        "PARTS",
        {
            "overhead": Part(lambda _: ("all",), lambda *_: iter(ROWS)),
            "paths": Part(lambda _: ("this", "that"), failing),
            "limit": Part(lambda _: (), None),
        },
    )


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--quik", "unrecognized arguments: --quik"),
        ("--only=overhaed", "there is no part 'overhaed'; there are overhead, "),
        ("--only=", "--only is empty"),
        (
            "--json=/nowhere/at/all.json",
            "/nowhere/at is not a writable folder",
        ),
        ("--plot=/", "--plot: / is an existing folder"),
        ("--plot=gs://a/b.png", "must be a path on this machine"),
        ("--minutes=0", "--minutes=0 must be positive"),
        ("--minutes=nan", "--minutes=nan must be positive"),
        ("--plot=picture.xyz", "picture.xyz"),
        ("--plot", "expected one argument"),
        ("something", "unrecognized arguments: something"),
    ],
)
def test_a_wrong_flag_is_one_line_and_status_2(flag, message, parts, capsys, monkeypatch):
    assert message in refusal(benchmark, [flag], capsys, monkeypatch)


def test_parts_come_in_their_own_order():
    assert benchmark.parse(["--only=overhead, limit"]).only == ("limit", "overhead")
    assert benchmark.parse([]).only == tuple(benchmark.PARTS)


def test_the_json_file_holds_the_machine_and_every_row(parts, tmp_path, capsys):
    path, picture = tmp_path / "figures.json", tmp_path / "figures.png"
    flags = [f"--json={path}", f"--plot={picture}", "--only=overhead", "--quick"]
    assert benchmark.main(flags) == 0
    document = json.loads(path.read_text())
    assert document["schema"] == report.SCHEMA
    assert document["date"][:2] == "20"
    assert document["device"]["platform"] == "cpu"
    assert document["device"]["kind"]
    assert {"python", "jax", "jaxlib", "flax"} <= document["versions"].keys()
    assert document["quick"] is True
    assert document["dtype"] == "float32"
    assert [row["verdict"] for row in document["rows"]] == ["met", "missed", None]
    assert document["rows"][0] == {
        "part": "overhead",
        "subject": "A",
        "compared": "b / c",
        "ratio": {"median": 1.04, "low": 1.0, "high": 1.1},
        "target": "<= 1.05",
        "verdict": "met",
        "figures": {"b ms": 1234.5, "b peak MB": None},
        "note": "",
    }
    assert picture.read_bytes().startswith(b"\x89PNG")
    table = capsys.readouterr().out
    assert "1.04  (1.00 to 1.10)" in table
    assert "[<= 1.05 MISSED]" in table
    assert "b 1,234 ms, b peak unknown MB" in table
    assert "not measured: nobody was there" in table


def test_a_part_that_fails_does_not_take_the_others_with_it(parts, tmp_path, capsys):
    path = tmp_path / "figures.json"
    assert benchmark.main([f"--json={path}"]) == 1
    rows = json.loads(path.read_text())["rows"]
    assert [row["part"] for row in rows] == ["overhead"] * 3 + ["paths"] * 2
    assert rows[-1]["subject"] == "B"  # another case of the part that fails
    printed = capsys.readouterr()
    assert "broken on purpose" in printed.err
    assert "limit" in printed.out


def test_a_target_is_met_missed_or_open():
    assert Row("", ratio=Spread(1.1, 1.0, 1.2), target=at_most(1.05)).verdict == "open"
    assert Row("", ratio=Spread(1.1, 1.0, 1.2), target=at_least(1.05)).verdict == "met"
    assert Row("", ratio=exactly(0.9), target=at_least(0.97)).verdict == "missed"
    assert Row("", ratio=exactly(0.9)).verdict is None
    assert str(Target("<=", 1.0)) == "<= 1"


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234.5, "1,234"), (99.96, "100.0"), (12.34, "12.3"), (1.0, "1.00"), (0.00123, "0.0012")],
)
def test_numbers_have_three_digits_that_count(value, text):
    assert report.number(value) == text


@pytest.fixture
def minutes(monkeypatch):
    """Two parts of three cases of two rows, with a fake clock that advances a second per row."""
    now = [0.0]

    def measure(settings, case):
        for number in (1, 2):
            settings.check_time()
            now[0] += 1.0
            yield Row(f"{case}, row {number}", "b / c", exactly(1.0))

    monkeypatch.setattr("time.monotonic", lambda: now[0])
    parts = {name: Part(lambda _: ("one", "two", "three"), measure) for name in ("first", "last")}
    monkeypatch.setattr(benchmark, "PARTS", parts)


def test_what_there_was_no_time_for_is_named(minutes, tmp_path, capsys):
    path = tmp_path / "figures.json"
    assert benchmark.main([f"--minutes={2.5 / 60}", f"--json={path}"]) == benchmark.BUDGET_SPENT
    rows = json.loads(path.read_text())["rows"]
    measured = [row["subject"] for row in rows if row["ratio"]]
    assert measured == ["one, row 1", "one, row 2", "two, row 1"]
    told = "the time limit is reached; not measured: first: two; first: three; last: one; last: two"
    assert told in capsys.readouterr().out
    assert {row["note"] for row in rows if not row["ratio"]} == {f"not measured: {OutOfTime()}"}
    assert benchmark.main(["--minutes=1"]) == 0


def test_every_row_is_written_as_it_is_measured(minutes, tmp_path, monkeypatch):
    path, found = tmp_path / "figures.json", []

    def lines(row):
        found.append(len(json.loads(path.read_text())["rows"]) if path.exists() else 0)
        return iter(())

    monkeypatch.setattr(report, "lines", lines)
    assert benchmark.main(["--minutes=1", f"--json={path}"]) == 0
    assert found == list(itertools.islice(itertools.count(), 12))


def test_a_contestant_that_cannot_run_is_a_row(monkeypatch, capsys):
    def measure(settings, case):
        raise WorkerFailed("no memory")

    monkeypatch.setattr(benchmark, "PARTS", {"only": Part(lambda _: ("A",), measure)})
    assert benchmark.main([]) == 0
    assert "not measured: no memory" in capsys.readouterr().out
