"""The examples, run in a folder with a run like that of `make train`; most train few steps."""

import json
import re
import runpy
import sys
import types
from pathlib import Path

import documents
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import several
import tensorflow_datasets as tfds

sys.path.insert(0, str(Path(__file__).parent / "data"))
import toy_datasets

from multipath_jax.gates import Observation, RouterRecord

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def at_home(digits_run, tmp_path, monkeypatch):
    """A working directory with ``runs/digits``; TFDS finds the digits."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "digits").symlink_to(digits_run)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(digits_run.parent / "tfds"))


@pytest.mark.slow  # trains until the network is accurate
def test_a_network_of_ones_own(at_home, capsys):
    names = run("own_network")
    assert names["accuracy"] > 0.9  # seeds 0, 1 and 2: 0.961, 0.972 and 0.955
    # Float32 sums of three terms, in a different order.
    np.testing.assert_allclose(names["by_hand"], names["by_layer"], rtol=1e-5, atol=1e-6)
    means = [names["gates"][0, names["digits"].test.labels == digit].mean(0) for digit in (1, 2)]
    assert abs(means[0] - means[1]).max() > 0.3  # seeds 0, 1 and 2: 0.8, 0.83 and 0.54
    printed = capsys.readouterr().out
    assert "gates (3, 355, 3)" in printed
    assert "BaseCNN-2-CC after 1 steps" in printed


def run(name):
    """Runs an example in the working directory; returns its global variables."""
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


@pytest.fixture
def few_steps(at_home, monkeypatch):
    """The nth call of ``Trainer.fit`` trains until step n, at most 3; later calls do nothing."""
    documents.train_shortly(monkeypatch, fits=3)


def test_a_router_of_ones_own(few_steps, capsys):
    names = run("own_router")
    assert names["result"].step == 1
    assert names["gates"].shape == (2, 100, 2)
    assert "mean gates of router 2" in capsys.readouterr().out


@pytest.mark.slow
def test_arrays_of_ones_own(few_steps):
    names = run("own_arrays")
    assert names["result"].step == 1
    assert names["trainer"].config.dataset.name == "own:arrays"


@pytest.mark.slow
def test_an_optimizer_of_ones_own(few_steps, capsys):
    run("own_optimizer")
    errors = re.findall(r"^(adamw|optax): error (.*) %$", capsys.readouterr().out, re.MULTILINE)
    assert [name for name, _ in errors] == ["adamw", "optax"]


@pytest.mark.slow
def test_a_loss_of_ones_own(few_steps):
    names = run("own_loss")
    assert names["result"].step == 1
    losses = names["squared_hinge"](jnp.array([[2.0, -2.0], [0.0, 0.0]]), jnp.array([0, 0]))
    np.testing.assert_array_equal(losses, [0.0, 2.0])


@pytest.mark.slow
def test_a_sweep(few_steps, capsys):
    rows = run("sweep")["rows"]
    assert [rate for rate, *_ in rows] == [0.01, 0.05, 0.2]
    table = capsys.readouterr().out.splitlines()[-4:]
    assert table[0].split() == ["rate", "loss", "error"]
    assert [line.split()[0] for line in table[1:]] == ["0.01", "0.05", "0.2"]


@pytest.mark.slow
@pytest.mark.parametrize("holdout", [0, 300])
def test_growth(holdout, at_home, monkeypatch, capsys):
    """Grows a network of two paths to three; without a holdout, also trains it further as it is."""
    documents.train_shortly(monkeypatch, fits=3)
    names = ["BaseCNN-3-CC"] if holdout else ["BaseCNN-2-CC", "BaseCNN-3-CC"]
    flags = ["--weights=runs/digits", f"--networks={','.join(names)}", "--dataset=digits"]
    monkeypatch.setattr(sys, "argv", ["grow.py", *flags, f"--holdout={holdout}"])
    rows = run("grow")["rows"]
    assert [row[0] for row in rows] == names
    heading, *lines = capsys.readouterr().out.splitlines()[-1 - len(names) :]
    columns = ["held-out", "error", "0.003"] if holdout else ["test", "error", "before"]
    assert heading.split()[:3] == columns
    assert {len(line.split()) for line in lines} == ({4} if holdout else {6})


@pytest.mark.slow  # trains five networks
def test_several_data_sets(tmp_path, capsys):
    """The printed errors are the measured ones; a rerun, which trains nothing, repeats them."""
    toy_datasets.prepare_two(tmp_path)
    argv = ["--names=toy+gray", "--model=Small-2-CC", "--epochs=3", "--seeds=1"]
    argv += [f"--data_dir={tmp_path}", f"--workdir={tmp_path / 'runs'}", "--set", "batch_size=8"]
    argv += ["--set", "dataset.own_statistics=True", "--proportions=2,1"]
    found = []
    for _ in range(2):
        with several.small_by_name():
            assert run("several")["main"](argv) == 0
        rows = json.loads((tmp_path / "runs" / "results.json").read_text())
        found.append([{**row, "images/s": None} for row in rows])
    assert found[0] == found[1]
    printed = capsys.readouterr().out
    kinds = ["soft", "k=1", "no routing", "toy alone", "gray alone"]
    assert [row["kind"] for row in rows] == kinds
    for row in rows:
        assert re.search(f"{row['kind']} +0 +.*{row['error']:.2f}", printed)
    assert rows[0]["errors"].keys() == {"toy", "gray"}
    assert rows[3]["errors"] == {"toy": rows[3]["error"]}


def observed(paths):
    """Observes discrete routers with two outputs; image b takes output ``paths[router][b]``."""
    routers, m = [], 1
    for number, chosen in enumerate(paths, start=1):
        active = np.arange(2) == np.array(chosen)[:, None]  # [b 2]
        gates = np.zeros((m, *active.shape), np.float32)
        gates[0] = active
        strength = np.zeros((m, len(chosen)), np.float32), np.zeros((2, len(chosen)), np.float32)
        routers.append(RouterRecord(f"router_{number}", gates, gates, *strength, gates > 0))
        m = 2
    return Observation(tuple(routers), np.zeros((len(paths[0]), 3), np.float32))


def test_what_routes_say_of_the_data_set():
    """Two data sets: equal routes at the first router (0 bits), different at the second (1 bit)."""
    found = run("several")["route_information"](
        [observed([[0, 1] * 20, [0] * 40]), observed([[0, 1] * 20, [1] * 40])]
    )
    bits = {name: values[0] for name, values in found.items()}
    assert bits == pytest.approx({"router_1": 0, "router_2": 1, "all": 1}, abs=1e-9)
    assert found["all"][2] == pytest.approx(1)


def test_which_parameters_a_data_set_uses():
    """All images take the first path after the first router; half take each after the second."""
    model = several.small(3, paths=2)
    image = jax.ShapeDtypeStruct((1, 4, 4, 1), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    head = types.SimpleNamespace(model=model, variables=variables)
    counts = {name: sum(leaf.size for leaf in jax.tree.leaves(tree))
              for name, tree in variables["params"].items()}  # fmt: skip
    found = run("several")["parameters"](head, observed([[0] * 40, [0, 1] * 20]))
    half = counts["router_1"] + counts["stage"] // 2 + counts["router_2"] // 2
    assert found == {"used": half + counts["dense"], "of an image": half + counts["dense"] // 2}


def test_the_tables_have_every_network():
    row = {"kind": "soft", "seed": 0, "errors": {"a": 12.5, "b": 0.25}, "error": 6.375}
    row |= {"training images/s": 1234.0, "images/s": {"a": 56.7, "b": 89.0}}
    used = {"used": 2000, "of an image": 1500}
    row |= {"parameters": {"a": used, "b": used}, "information": {"all": (0.5, 0.125, 1.0)}}
    alone = {**row, "kind": "b alone", "errors": {"b": 1.0}, "images/s": {"b": 3.0}}
    alone["parameters"] = {"b": used}
    del alone["information"]
    errors, routes, parameters, speed = run("several")["tables"]([row, alone], ("a", "b"))
    assert errors.splitlines()[2:] == [
        "soft        0  12.50  0.25        6.38     1,234",
        "b alone     0         1.00        6.38     1,234",
    ]
    assert routes.splitlines()[2] == "soft        0  0.500 (0.125)"
    assert "b alone     0             2.0 (1.5)" in parameters
    assert "soft        0  57  89" in speed


def test_all_examples_are_run():
    run_here = set(re.findall(r"run\(\"(\w+)\"\)", Path(__file__).read_text()))
    assert {path.stem for path in EXAMPLES.glob("*.py")} == run_here
