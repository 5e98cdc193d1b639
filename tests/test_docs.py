"""The documentation: its Python code runs, its links are valid, and the site builds."""

import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys
import types
from unittest.mock import MagicMock

import documents
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
import yaml
from documents import PAGES, ROOT
from flax.traverse_util import flatten_dict

from multipath_jax import create_model, summary, weights
from multipath_jax.config.keys import check_key

DOCS, CONTRIBUTING = ROOT / "docs", ROOT / "CONTRIBUTING.md"
MKDOCS = yaml.safe_load((ROOT / "mkdocs.yml").read_text())


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Python code


@pytest.fixture
def at_home(digits_run, tmp_path, monkeypatch):
    """A working directory with ``runs/digits``; TFDS finds the digits; MLflow and W&B are mocks."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "digits").symlink_to(digits_run)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(digits_run.parent / "tfds"))
    for name in ("mlflow", "wandb"):
        monkeypatch.setitem(sys.modules, name, MagicMock())


@pytest.mark.parametrize("name", ["api", "networks", "own_images", "several", "training"])
def test_python_runs(name, at_home, monkeypatch):
    documents.train_shortly(monkeypatch)
    assert "mp" in documents.run(DOCS / f"{name}.md")


@pytest.mark.slow  # takes ten seconds, mostly to compile the evaluation
def test_a_trained_network_is_used(at_home):
    names = documents.run(DOCS / "using.md")
    assert names["logits"].shape == (8, 10)
    assert names["gates"].shape == (2, 8, 2)
    assert 0 <= names["metrics"]["error"] <= 100


@pytest.mark.slow  # compiles programs for all depths
def test_a_network_runs_in_pieces(at_home):
    names = documents.run(DOCS / "discrete.md")
    assert names["logits"].shape == (8, 10)
    assert names["network"].work.loads == [[8, 8]] * 5


def test_all_python_is_run():
    pages = {page.stem for page in PAGES if documents.python(page)}
    models = {"README", "CONTRIBUTING", "discrete", "nnx", "own_network", "own_router", "using"}
    models |= {"weights"}
    assert pages == models | {"api", "networks", "own_images", "several", "training"}


def test_weights_go_in_and_out(at_home, digits_run):
    """Imports a file that has all arrays, with zeros."""
    network = create_model("ResNet20", shortcut="centered")
    images = jnp.zeros((1, 32, 32, 3))
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), images))
    arrays = {key: np.zeros(leaf.shape, leaf.dtype) for key, leaf in flatten_dict(shapes).items()}
    pathlib.Path("resnet20.safetensors").write_bytes(weights.to_file(arrays, {}))
    pathlib.Path("runs/r20").symlink_to(digits_run)
    names = documents.run(DOCS / "weights.md")
    assert names["variables"].keys() == {"params", "batch_stats"}
    assert pathlib.Path("r20.safetensors").is_file()


@pytest.mark.slow  # tests of the README and the examples train custom networks as well
def test_a_network_is_trained(at_home, monkeypatch):
    documents.train_shortly(monkeypatch, fits=2)
    names = documents.run(DOCS / "own_network.md")
    assert names["result"].step == 1
    assert names["run"].step in (1, 2)  # the better checkpoint
    assert names["logits"].shape[1] == 10
    assert [router.gates.shape for router in names["observation"].routers] == [
        (1, 100, 3),
        (3, 100, 3),
    ]
    assert pathlib.Path("routes.png").is_file()


def test_an_nnx_module_is_trained(at_home, monkeypatch):
    documents.train_shortly(monkeypatch, fits=1)
    names = documents.run(DOCS / "nnx.md")
    assert names["run"].step == 1
    assert {"params", "batch_stats"} <= set(names["run"].variables)


def test_a_router_routes():
    router = documents.run(DOCS / "own_router.md")["MaxRouter"](2)
    xs = jax.random.normal(jax.random.key(0), (3, 4, 5, 5, 8))
    ys, variables = router.init_with_output(jax.random.key(1), xs)
    assert ys.shape == (2, 4, 5, 5, 8)
    found = [
        router.apply(variables, x, mutable=["intermediates"])[1]["intermediates"]["gates"][0]
        for x in (xs, xs.at[:, :, 0, 0].set(9.0))
    ]
    assert found[0].shape == (3, 4, 2)
    assert abs(found[0] - found[1]).max() > 0.01  # the gates depend on the maxima


def test_the_examples_of_contributing_do_what_they_say():
    names = documents.run(CONTRIBUTING)
    xs = jax.random.normal(jax.random.key(0), (3, 4, 8))
    ys, _ = names["EvenRouter"](2).init_with_output(jax.random.key(1), xs)
    np.testing.assert_allclose(ys, jnp.stack([xs.sum(0) / 2] * 2), rtol=1e-6, atol=1e-6)
    (family,) = names["FAMILIES"]
    assert all(re.fullmatch(family.pattern, name) for name in family.examples)
    network = family.build(10, paths=3)
    logits = jax.eval_shape(
        lambda x: network.init_with_output(jax.random.key(0), x)[0], jnp.ones((2, 8, 8, 3))
    )
    assert logits.shape == (2, 10)
    assert names["get_config"]("DeepCNN").model.name == "DeepCNN"


# Consistency with the package


def test_keys_of_the_config_exist():
    """Checks keys in command lines, and in rows of tables that begin with a key."""
    for page in PAGES:
        text = page.read_text()
        keys = re.findall(r"--config\.([\w.]+)", text)
        for row in re.findall(r"^\| (`[a-z_]+[.\w]*=[^|]*)\|", text, re.MULTILINE):
            keys += re.findall(r"`([a-z_]+[.\w]*)=", row)
        for key in keys:
            check_key(key)


def keys_of(page):
    return re.findall(r"`([a-z_.]+)=", page.read_text())


def test_the_page_of_recipes_names_every_key_beyond_the_paper():
    text = (ROOT / "multipath_jax/config/keys.py").read_text()
    beyond = text.partition("# Beyond the paper")[2].partition("# Logging, evaluation")[0]
    keys = set(re.findall(r"^    config\.([\w.]+) =", beyond, re.MULTILINE))
    assert len(keys) > 15
    elsewhere = {"optimizer.options", "loss"}
    assert keys - elsewhere <= set(keys_of(DOCS / "recipes.md"))


def test_networks_exist():
    for page in PAGES:
        for name in re.findall(r"create_model\(\"([^\"]+)\"", page.read_text()):
            if name not in ("Small-3-CC",):  # an example in CONTRIBUTING.md
                create_model(name)


@pytest.mark.slow  # traces all networks
def test_the_table_of_networks_is_the_summary_s(capsys):
    summary.main([])
    page = (DOCS / "networks.md").read_text()
    block = re.search(r"<!-- summary.*?```text\n(.*?)```", page, re.DOTALL)
    assert block[1] == capsys.readouterr().out


# Links and the site


def links(page):
    """The targets of the relative links of a page, as paths from the root, without anchors."""
    found = re.findall(r"\]\((?!\w+:|#)([^)\s#]+)", page.read_text())
    return [os.path.relpath(page.parent / target, ROOT) for target in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    assert [path for path in links(page) if not (ROOT / path).exists()] == []


def test_the_readme_names_every_section_of_the_paper():
    text = (ROOT / "README.md").read_text().partition("## The paper in")[2]
    for section in ("3", "4", "5", "6.2", "6.3", "6.4", "7"):
        assert f"| Section {section}:" in text


def nav(entries):
    for entry in entries:
        if isinstance(entry, str):
            yield entry
        else:
            yield from nav(entry.values() if isinstance(entry, dict) else entry)


def test_every_page_is_in_the_nav(hooks):
    pages = {page.name for page in DOCS.glob("*.md")}
    pages |= {place for place in hooks.FROM_OUTSIDE.values() if place.endswith(".md")}
    found = list(nav(MKDOCS["nav"]))
    assert sorted(found) == sorted(pages)
    assert {path.name for path in documents.OUTSIDE} <= set(hooks.FROM_OUTSIDE)


@pytest.mark.parametrize(
    ("page", "link", "place"),
    [
        ("index.md", "docs/nnx.md", "nnx.md"),
        ("index.md", "docs/figures/routes.png", "figures/routes.png"),
        ("index.md", "CONTRIBUTING.md", "contributing.md"),
        ("index.md", "examples", "REPOSITORY/tree/main/examples"),
        ("results.md", "../results/errors.png", "results/errors.png"),
        (
            "paper.md",
            "../multipath_jax/routing.py",
            "REPOSITORY/blob/main/multipath_jax/routing.py",
        ),
        ("paper.md", "networks.md#parameters", "networks.md#parameters"),
        ("paper.md", "../README.md", "index.md"),
        ("paper.md", "https://example.org/a.md", "https://example.org/a.md"),
        ("paper.md", "../no.py", "no.py"),  # an error in the strict build
    ],
)
def test_links_of_the_site(hooks, page, link, place):
    config = types.SimpleNamespace(extra={"repository": "REPOSITORY"})
    page = types.SimpleNamespace(file=types.SimpleNamespace(src_uri=page))
    pointed = hooks.on_page_markdown(f"see [![a](x.png)]({link})", page, config, None)
    assert pointed.endswith(f"]({place})")


def build(folder, site):
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", f"--site-dir={site}"]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


def test_the_site_builds(tmp_path, hooks):
    done = build(ROOT, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    pages = {path.name: path.read_text() for path in tmp_path.glob("*.html")}
    assert {name.replace(".md", ".html") for name in nav(MKDOCS["nav"])} <= set(pages)
    assert "make train" in pages["index.html"]
    assert 'id="multipath_jax.Trainer.fit"' in pages["api.html"]
    assert 'id="multipath_jax.routing.cross_connect"' in pages["api.html"]
    loaded = re.compile(r'<(?:script|img)[^>]* src="https?:|<link[^>]*stylesheet[^>]*"https?:')
    assert [name for name, text in pages.items() if loaded.search(text)] == []
    assert (tmp_path / "results" / "errors.png").is_file()


@pytest.mark.slow  # builds the site again
def test_a_broken_link_is_an_error(tmp_path):
    for name in ("docs", "multipath_jax", "results"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for path in (*documents.OUTSIDE, ROOT / "mkdocs.yml"):
        shutil.copy(path, tmp_path)
    with open(tmp_path / "docs" / "using.md", "a") as page:
        page.write("\n[gone](../multipath_jax/gone.py)\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0
    assert "gone.py" in done.stderr
