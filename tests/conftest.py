"""Settings of all tests: two CPU devices, checked shapes, cached compilation; shared fixtures."""

import atexit
import contextlib
import gc
import math
import os
import shutil
import signal
import tempfile
import types

# Must be set before JAX is imported.
os.environ["JAX_PLATFORMS"] = "cpu"

# Must be set before matplotlib is imported: figures use its default settings and a new font list,
# not the user's. The workers of a parallel run share the folder of the process that starts them.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["MPLCONFIGDIR"] = tempfile.mkdtemp(prefix="matplotlib-")
    atexit.register(shutil.rmtree, os.environ["MPLCONFIGDIR"], ignore_errors=True)

from jaxtyping import install_import_hook

# Checks the annotated shapes and types at every call.
install_import_hook("multipath_jax", "beartype.beartype")

import jax  # noqa: E402
import memory  # noqa: E402
import processes  # noqa: E402
import programs  # noqa: E402
import pytest  # noqa: E402

from multipath_jax.utils import cpu  # noqa: E402

cpu.tune()
# Sharded code is tested on a mesh of two devices. Tests compile much and compute little; without
# optimization, compilation takes a third of the time.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
    " --xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
)

# If a script starts the tests in the background, they ignore SIGINT, and the programs that they
# start would inherit this.
signal.signal(signal.SIGINT, signal.default_int_handler)


def use_cache():
    """Enables the persistent compilation cache, also for programs that compile quickly."""
    jax.config.update("jax_compilation_cache_dir", programs.CACHE)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.01)


use_cache()

processes.adopt_orphans()


def pytest_collection_finish():
    """Excludes the imported modules, which are never freed, from the garbage collector's scans."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def file_ends_its_processes():
    """Fails if fixtures of a test file leave processes running."""
    with processes.none_left():
        yield


@pytest.fixture(autouse=True)
def test_ends_its_processes(file_ends_its_processes):
    """Fails if a test leaves processes running, which would slow others or outlive the suite."""
    with processes.none_left():
        yield


@pytest.fixture(autouse=True)
def same_cache():
    """Restores the compilation cache, which programs called by a test may change or disable."""
    yield
    use_cache()


@pytest.fixture(autouse=True)
def within_memory(request):
    """Limits the memory of this process, so that parallel test processes fit on a small machine.

    Slow tests, which do not run in parallel, may use more (full VGGs in float64: 5 GB).
    """
    slow = request.node.get_closest_marker("slow")
    with memory.bounded(math.inf if slow else memory.LIMIT):
        yield


@pytest.fixture(scope="session", autouse=True)
def without_curves():
    """Disables drawing training curves, which takes as long as training a small network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("multipath_jax.trainer.curves", types.SimpleNamespace(draw=lambda _: []))
        yield


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A TFDS directory with the digits data set, prepared once."""
    from multipath_jax.data import load_dataset

    folder = tmp_path_factory.mktemp("tfds")
    load_dataset("digits", folder)
    return folder


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """The address of an empty mock bucket, for this process and its subprocesses."""
    import buckets

    folder = tmp_path / "buckets"
    (folder / "bucket").mkdir(parents=True)
    monkeypatch.setenv(buckets.ROOT, str(folder))
    with buckets.registered():
        yield "gs://bucket"


@pytest.fixture
def x64():
    """Enables float64 for a test, for example to compare derivatives with a tolerance of 1e-10."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def strict():
    """Forbids implicit promotion of ranks and types, as
    ``JAX_NUMPY_RANK_PROMOTION=raise JAX_NUMPY_DTYPE_PROMOTION=strict`` does."""
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory):
    """A workdir with two checkpoints of a routed network for the digits, made without training.

    The weights are random, and differ between step 1 (the best) and step 2. The data set is in the
    folder ``tfds`` next to the workdir.
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
