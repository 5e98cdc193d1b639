import jax
import jax.numpy as jnp
import pytest

from multipath_jax.config.keys import default_config
from multipath_jax.errors import UserError
from multipath_jax.parallel import compilation, devices


def config(**changes):
    made = default_config()
    made.update_from_flattened_dict(changes)
    return made


def test_all_devices_share_the_batch():
    mesh = devices.make_mesh(config())
    assert dict(mesh.shape) == {"data": 2, "path": 1}
    x = jax.device_put(jnp.arange(8.0).reshape(4, 2), devices.split_batch(mesh))
    assert [shard.data.shape for shard in x.addressable_shards] == [(2, 2), (2, 2)]
    y = jax.device_put(x, devices.split_batch(mesh, axis=1))
    assert [shard.data.shape for shard in y.addressable_shards] == [(4, 1), (4, 1)]
    z = jax.device_put(x, devices.replicated(mesh))
    assert [shard.data.shape for shard in z.addressable_shards] == [(4, 2), (4, 2)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 33}, "does not divide among 2 devices; use a multiple of 2"),
        ({"mesh.data": 3}, "do not make up the 2 devices"),
        ({"mesh.data": 0}, "do not make up the 2 devices"),
        ({"mesh.path": 4}, "do not make up the 2 devices"),
        ({"mesh.path": 0}, "mesh.path=0 must be at least 1"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        devices.make_mesh(config(**changes))


@pytest.mark.parametrize(("size", "rounded"), [(1, 2), (2, 2), (499, 500)])
def test_sizes_are_rounded_up_to_the_devices(size, rounded):
    assert devices.round_up(size, devices.make_mesh(config())) == rounded


@pytest.fixture
def cache_settings():
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.usefixtures("cache_settings")
def test_the_compilation_cache_is_in_the_users_folder(monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    compilation.enable_compilation_cache("auto", "runs/a")
    assert jax.config.jax_compilation_cache_dir == "/somewhere/multipath_jax/xla"
    compilation.enable_compilation_cache("/elsewhere")
    assert jax.config.jax_compilation_cache_dir == "/elsewhere"
    compilation.enable_shared_cache("/of/another/machine")
    assert jax.config.jax_compilation_cache_dir == "/somewhere/multipath_jax/xla"
    compilation.enable_shared_cache("")
    assert jax.config.jax_compilation_cache_dir is None


@pytest.mark.usefixtures("cache_settings", "bucket")
def test_the_compilation_cache_of_a_run_in_a_bucket_is_there(monkeypatch, tmp_path):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    compilation.enable_compilation_cache("auto", "gs://bucket/run/")
    assert jax.config.jax_compilation_cache_dir == "gs://bucket/run/xla_cache"
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    compilation.enable_compilation_cache("auto", "gs://bucket/run/")
    assert jax.config.jax_compilation_cache_dir == str(tmp_path)


@pytest.mark.parametrize(
    ("platform", "dtype"), [("cpu", jnp.float32), ("gpu", jnp.bfloat16), ("tpu", jnp.bfloat16)]
)
def test_accelerators_compute_in_bfloat16(monkeypatch, platform, dtype):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    assert devices.compute_dtype("auto") == dtype
    assert devices.compute_dtype("float32") == jnp.float32
    assert devices.compute_dtype("bfloat16") == jnp.bfloat16
