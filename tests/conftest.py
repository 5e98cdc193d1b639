"""Settings that every test shares: two CPU devices, checked shapes, cached compilation."""

import atexit
import contextlib
import gc
import os
import shutil
import signal
import tempfile
import types

# Before jax is imported: sharded code is tested on a mesh of two devices from the first day.
os.environ["JAX_PLATFORMS"] = "cpu"

# Before matplotlib is imported: figures are drawn with its own settings and list of fonts, not with
# a user's. The workers of a parallel run share the folder of the process that starts them.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["MPLCONFIGDIR"] = tempfile.mkdtemp(prefix="matplotlib-")
    atexit.register(shutil.rmtree, os.environ["MPLCONFIGDIR"], ignore_errors=True)

from jaxtyping import install_import_hook

# Annotations of shapes and types are checked at every call while testing.
install_import_hook("multipath_jax", "beartype.beartype")

import jax  # noqa: E402
import memory  # noqa: E402
import processes  # noqa: E402
import programs  # noqa: E402
import pytest  # noqa: E402

from multipath_jax.utils import cpu  # noqa: E402

cpu.tune()
# Tests compile much and compute little: less optimized code is there in a third of the time.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
    " --xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
)

# A suite that a script began in the background ignores SIGINT, and so would all that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


def use_cache():
    """Of compiled programs, small ones too."""
    jax.config.update("jax_compilation_cache_dir", programs.CACHE)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.01)


use_cache()

processes.adopt_orphans()


def pytest_collection_finish():
    """Modules stay to the end: the garbage collector need not look at them after every test."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def file_ends_its_processes():
    """Those of a file's own fixtures."""
    with processes.none_left():
        yield


@pytest.fixture(autouse=True)
def test_ends_its_processes(file_ends_its_processes):
    """None outlives its test: it would slow the others down, or outlive the suite."""
    with processes.none_left():
        yield


@pytest.fixture(autouse=True)
def same_cache():
    """What a test calls as a program does may have chosen another, or none, for the process."""
    yield
    use_cache()


@pytest.fixture(autouse=True)
def within_memory():
    """Two processes of tests are to fit into a small machine's memory."""
    with memory.bounded():
        yield


@pytest.fixture(scope="session", autouse=True)
def without_curves():
    """Runs do not draw their curves: that takes as long as to train a small network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("multipath_jax.trainer.curves", types.SimpleNamespace(draw=lambda _: []))
        yield


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A TFDS directory with the digits, prepared once."""
    from multipath_jax.data import load_dataset

    folder = tmp_path_factory.mktemp("tfds")
    load_dataset("digits", folder)
    return folder


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """The address of an empty bucket, for this process and those that it starts."""
    import buckets

    folder = tmp_path / "buckets"
    (folder / "bucket").mkdir(parents=True)
    monkeypatch.setenv(buckets.ROOT, str(folder))
    with buckets.registered():
        yield "gs://bucket"


@pytest.fixture
def x64():
    """Float64 for one test: derivatives are compared to 1e-10 there."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def strict():
    """No operand is silently widened or given another type, as under
    ``JAX_NUMPY_RANK_PROMOTION=raise JAX_NUMPY_DTYPE_PROMOTION=strict``."""
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory):
    """A workdir with two checkpoints of a routed network for the digits, made without training.

    Their weights are random, and others at step 1 (the best) than at step 2. The data set is beside
    the workdir, in ``tfds``.
    """
    from etils import epath
    from weights import random_like

    from multipath_jax import checkpoints as ckpt
    from multipath_jax.config.keys import default_config
    from multipath_jax.training.setup import Setup

    folder = epath.Path(tmp_path_factory.mktemp("digits"))
    config = default_config()
    config.model.name, config.dataset.data_dir = "BaseCNN-2-CC", str(folder / "tfds")
    setup, workdir = Setup(config), folder / "run"
    with ckpt.claimed(workdir), contextlib.closing(ckpt.Checkpoints(workdir)) as checkpoints:
        ckpt.write_config(workdir, config)
        ckpt.write_description(workdir, setup.description)
        for step, error in ((1, 40.0), (2, 60.0)):
            checkpoints.save(step, random_like(setup.abstract_carry, seed=step), error)
    return workdir
