"""Tests of growing networks to more paths: equal functions, and noise that makes copies differ."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import CLOSE, CLOSE_64, distance
from flax import traverse_util

import multipath_jax as mp
from multipath_jax import layers
from multipath_jax.config.keys import default_config
from multipath_jax.errors import UserError
from multipath_jax.layers.residual import PreActivationBlock
from multipath_jax.models import cifar_resnet, imagenet_resnet, plain, vgg
from multipath_jax.models.multipath import MultiPath
from multipath_jax.training.run import first_carry
from multipath_jax.training.setup import Setup
from multipath_jax.weights import find_growth, grow

SIZES = {"VGG": 32, "ResNet18": 33, "ResNet50": 33}  # of images, by the start of a name; else 8
# Networks, and the networks into which they grow.
PAIRS = {
    "BaseCNN": "BaseCNN-2-CC BaseCNN-3-CC BaseCNN-4-CC BaseCNN-2-CP BaseCNN-3-CP BaseCNN-4-CP "
    "BaseCNN-3",
    "DeepCNN": "DeepCNN-2-CC DeepCNN-3-CP DeepCNN-4-CP",
    "WideCNN": "WideCNN-2-CP WideCNN-3-CC WideCNN-4-CC",
    "VGG13": "VGG13-2-CC VGG13-3-CC VGG13-4-CC",
    "VGG16": "VGG16-2-CC",
    "VGG11-BN": "VGG11-BN-2-CC VGG11-BN-3-CC VGG11-BN-4-CC VGG11-BN-3",
    "ResNet8": "ResNet8-2-CC ResNet8-3-CC ResNet8-4-CC ResNet8-3",
    "ResNet18": "ResNet18-2-CC ResNet18-3-CC ResNet18-4-CC ResNet18-2",
    "ResNet50": "ResNet50-2-CC ResNet50-3-CC ResNet50-4-CC",
    "BaseCNN-1-CC": "BaseCNN-3-CC",
    "BaseCNN-2-CC": "BaseCNN-3-CC BaseCNN-4-CC",
    "BaseCNN-2-CP": "BaseCNN-3-CP BaseCNN-4-CP",
    "BaseCNN-2": "BaseCNN-3",
    "VGG11-BN-2-CC": "VGG11-BN-3-CC",
    "ResNet8-2-CC": "ResNet8-3-CC ResNet8-4-CC",
    "ResNet8-3-CC": "ResNet8-4-CC",
    "ResNet8-2-CP": "ResNet8-3-CP",
    "ResNet8-2": "ResNet8-3",
    "ResNet50-2-CC": "ResNet50-3-CC",
}
QUICK = {
    ("BaseCNN", "BaseCNN-3-CC"),
    ("BaseCNN", "BaseCNN-4-CP"),
    ("VGG11-BN", "VGG11-BN-3-CC"),
    ("ResNet8", "ResNet8-3"),
    ("ResNet18", "ResNet18-2-CC"),
    ("ResNet8-2-CC", "ResNet8-3-CC"),
}


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """Reduces the channels of all networks."""
    monkeypatch.setattr(
        plain,
        "STRUCTURES",
        {
            "BaseCNN": ((4, 4), (6, 6), (8, 8)),
            "WideCNN": ((8, 8), (12, 12), (16, 16)),
            "DeepCNN": ((4, 4), (6, 6), (8, 8, 8), (10, 10, 10)),
        },
    )
    fives = ((4, 4), (4, 4), (6, 6, 6), (6, 6), (8, 8))
    monkeypatch.setattr(vgg, "STRUCTURES", {"VGG13": fives, "VGG16": fives})
    monkeypatch.setattr(vgg, "FEATURES", (4, 4, 6, 6, 8))
    monkeypatch.setattr(vgg, "TORCHVISION_DENSE", 16)
    monkeypatch.setattr(cifar_resnet, "STEM", 4)
    monkeypatch.setattr(cifar_resnet, "STACKS", (4, 8, 16))
    monkeypatch.setattr(imagenet_resnet, "STEM", 4)
    monkeypatch.setattr(imagenet_resnet, "STACKS", (4, 6, 8, 10))


def images(name, dtype=jnp.float32):
    size = next((size for start, size in SIZES.items() if name.startswith(start)), 8)
    return jnp.asarray(np.random.default_rng(3).normal(size=(8, size, size, 3)), dtype)


def shapes(model, x):
    return dict(jax.eval_shape(partial(model.init, train=False), jax.random.key(0), x))


def drawn(model, x, seed):
    """Random weights and statistics, scaled so that activations keep their size."""
    rng = np.random.default_rng(seed)

    def made(path, leaf):
        name = path[-1].key
        if name in ("var", "scale"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype)
        inputs = np.prod(leaf.shape[-4:-1]) if name == "kernel" else 16
        deviation = np.sqrt(2 / inputs) if name in ("kernel", "w1", "w2") else 0.3
        return rng.normal(0, deviation, leaf.shape).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(made, shapes(model, x))


def models(source, grown, **options):
    return mp.create_model(source, **options), mp.create_model(grown, **options)


def each():
    """Parametrizes a test by the pairs in `QUICK`, and in the slow suite by all pairs."""
    pairs = [(source, grown) for source, names in PAIRS.items() for grown in names.split()]
    slow = pytest.mark.slow
    cases = [pair if pair in QUICK else pytest.param(*pair, marks=slow) for pair in pairs]
    return pytest.mark.parametrize(("source", "grown"), cases)


@each()
def test_a_grown_network_computes_the_same(source, grown):
    """In float32, up to the order of summation: 1e-5 relative to the largest logit."""
    single, many = models(source, grown)
    x = images(source)
    before, fresh = drawn(single, x, 1), drawn(many, x, 2)
    after = grow(before, fresh, many)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, fresh)
    expected, logits = jax.jit(single.apply)(before, x), jax.jit(many.apply)
    assert distance(logits(after, x), expected) < CLOSE
    assert distance(logits(grow(before, fresh, many, 0.5), x), expected) > 0.01


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("source", "grown"),
    [
        ("BaseCNN", "BaseCNN-2-CP"),
        pytest.param("ResNet8-2-CC", "ResNet8-3-CC", marks=pytest.mark.slow),
        pytest.param("VGG11-BN-2-CC", "VGG11-BN-3-CC", marks=pytest.mark.slow),
    ],
)
def test_also_in_training(source, grown):
    """With batch statistics; running statistics after the step are those of the source, grown."""
    single, many = models(source, grown, dtype=jnp.float64)
    x = images(source, jnp.float64)
    before, fresh = (
        jax.tree.map(np.float64, drawn(model, x, seed)) for seed, model in enumerate((single, many))
    )

    @partial(jax.jit, static_argnums=0)
    def step(model, variables):
        return model.apply(variables, x, train=True, mutable=["batch_stats"])

    expected, statistics = step(single, before)
    found, updated = step(many, grow(before, fresh, many))
    assert distance(found, expected) < CLOSE_64
    whole = grow({**before, **statistics}, fresh, many)["batch_stats"]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9), updated["batch_stats"], whole)


# --- The noise ------------------------------------------------------------------------------------


def gradients(variables, model, x):
    def loss(params):
        logits = model.apply({**variables, "params": params}, x)
        return -jax.nn.log_softmax(logits)[jnp.arange(len(x)), jnp.arange(len(x))].mean()

    return traverse_util.flatten_dict(jax.jit(jax.grad(loss))(variables["params"]))


def test_without_noise_copies_stay_copies():
    """Copies have equal gradients, and the last kernels of gates none; with noise, this changes."""
    single, many = own(layers.ConvNorm(4), paths=(1, 2))
    x = images("own")
    before, fresh = drawn(single, x, 1), drawn(many, x, 2)
    equal = gradients(grow(before, fresh, many), many, x)
    noisy = gradients(grow(before, fresh, many, 0.05), many, x)
    for key, gradient in equal.items():
        size = np.abs(gradient).max()
        if key[0] in ("layer_0", "dense"):
            np.testing.assert_allclose(gradient[0], gradient[1], atol=1e-5 * size)  # float32
            if key[0] != "dense" or key[-1] == "kernel":
                assert distance(noisy[key][0], noisy[key][1]) > 1e-3, key
        if key[-1] == "w2":
            assert size < 1e-5 * np.abs(noisy[key]).max(), key


def test_the_size_of_the_noise():
    single, many = models("ResNet8", "ResNet8-3-CC")
    x = images("ResNet8")
    before, fresh = drawn(single, x, 1), drawn(many, x, 2)
    exact, noisy, again = (
        traverse_util.flatten_dict(grow(before, fresh, many, noise)) for noise in (0.0, 0.1, 0.1)
    )
    changed = set()
    for key, value in noisy.items():
        np.testing.assert_array_equal(value, again[key])
        if not np.array_equal(value, exact[key]):
            changed.add((key[1], key[-1]))
        if key[-1] == "kernel" and key[1] != "stem":
            axes = tuple(range(1, value.ndim))
            sizes = np.std(value - exact[key], axis=axes) / np.std(exact[key], axis=axes)
            np.testing.assert_allclose(sizes, 0.1, rtol=1e-3)  # float32, of small differences
    stacks, routers = (
        {(f"{kind}_{number}", leaf) for number in range(1, most)}
        for kind, leaf, most in (("stack", "kernel", 4), ("router", "w2", 5))
    )
    assert changed == stacks | routers | {("dense", "kernel"), *((r, "b2") for r, _ in routers)}
    gate = fresh["params"]["router_2"]["gate"]
    np.testing.assert_allclose(noisy["params", "router_2", "gate", "w2"], 0.1 * gate["w2"])
    np.testing.assert_array_equal(noisy["params", "router_2", "gate", "w1"], gate["w1"])


# --- What cannot grow -----------------------------------------------------------------------------


class OtherRouter(layers.CrossConnect):
    """A router that is not known to sum its inputs with softmax gates."""


def own(*middle, router=layers.CrossConnect, paths=(2, 3)):
    """Custom networks with the given numbers of paths, and given layers between their routers."""

    def network(paths):
        named = [layer.clone(name=f"layer_{number}") for number, layer in enumerate(middle)]
        return MultiPath(
            (
                layers.ConvNorm(4, name="conv"),
                router(paths, name="router_1"),
                *named,
                router(paths, name="router_2"),
                layers.PoolDense(10, name="dense"),
            )
        )

    return map(network, paths)


def stack(block):
    return layers.ResidualStack(partial(block, 4), 1)


OBSTACLES = {
    "fewer paths": (lambda: models("BaseCNN-3-CC", "BaseCNN-2-CC"), "added, but not removed"),
    "discrete": (
        lambda: (mp.create_model("BaseCNN"), mp.create_model("BaseCNN-2-CC", k=1)),
        "from 1 path to 2: discrete routing chooses anew",
    ),
    "more layers": (
        lambda: models("ResNet8", "ResNet8-2-CP"),
        "that a single-path network does no",
    ),
    "deeper": (lambda: models("ResNet8", "ResNet14-2-CC"), "missing there: .*stack_1/block_2/"),
    "less deep": (lambda: models("ResNet14", "ResNet8-2-CC"), "extra there: .*stack_1/block_2/"),
    "wider": (lambda: models("BaseCNN", "WideCNN-2-CC"), r"shape: .*conv_1/.* \(4,\) there and"),
    "other routers": (lambda: models("BaseCNN-2-CC", "BaseCNN-3-CP"), "gives 3. of the .* arrays"),
    "unrouted": (lambda: models("BaseCNN-2", "BaseCNN-3-CC"), "missing there: params/router_1/"),
    "other kind": (lambda: models("BaseCNN", "ResNet8-2-CC"), "nothing in it fits"),
    "as many": (lambda: models("BaseCNN-2-CC", "BaseCNN-2-CC"), "not of a network with fewer"),
    "one path": (lambda: models("BaseCNN", "BaseCNN"), "not of a network with fewer"),
    "one's own router": (lambda: own(router=OtherRouter), r"its routers \(OtherRouter\) are not"),
    "BatchNorm first": (lambda: own(stack(PreActivationBlock)), "layer_0 cannot be scaled"),
    "one's own layer": (lambda: own(layers.SqueezeExcite()), "layer_0 cannot be scaled"),
}


@pytest.mark.parametrize("case", OBSTACLES)
def test_what_cannot_grow(case):
    made, said = OBSTACLES[case]
    single, many = made()
    x = images("BaseCNN")
    with pytest.raises(UserError, match=said) as caught:
        grow(shapes(single, x), shapes(many, x), many)
    assert "\n" not in str(caught.value)


def test_layers_of_ones_own_that_need_no_scale():
    """With twice as many paths, any layer grows, since its copies are exact."""
    single, many = own(layers.SqueezeExcite(), paths=(2, 4))
    x = images("BaseCNN")
    before, fresh = drawn(single, x, 1), drawn(many, x, 2)
    assert distance(many.apply(grow(before, fresh, many), x), single.apply(before, x)) < CLOSE


def test_networks_without_paths_do_not_grow():
    assert find_growth(None, {}, {}) is None
    assert find_growth(mp.create_model("BaseCNN"), {}, {}) is None


# --- Runs -----------------------------------------------------------------------------------------


def config_of(data_dir, source, name="ResNet8-2-CC", **changes):
    config = default_config()
    config.model.name, config.model.options = name, "shortcut=centered"
    config.dataset.data_dir, config.init_from = str(data_dir), str(source)
    config.dataset.mean, config.dataset.std = "0.25", "0.5"
    config.growth_noise = 0.0
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture
def wide(monkeypatch):
    """Restores the channels, since the file is of the full network."""
    monkeypatch.setattr(cifar_resnet, "STEM", 16)
    monkeypatch.setattr(cifar_resnet, "STACKS", (16, 32, 64))


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("source", [pytest.param("file", marks=pytest.mark.slow), "imported"])
def test_a_run_begins_with_a_grown_network(source, request, imported, data_dir):
    config = config_of(data_dir, request.getfixturevalue(source), "ResNet8-3-CC")
    carry, lines = first_carry(Setup(config), config)
    run = mp.load_run(imported)
    x = run.prepare(run.test(16).images)
    grown = mp.create_model("ResNet8-3-CC", shortcut="centered")
    logits = jax.jit(grown.apply)(carry.state.variables, x)
    assert distance(logits, run.model.apply(run.variables, x)) < CLOSE
    assert lines[1:] == [
        "growing from 1 path to 3, which compute the same; copies stay equal in training "
        "(growth_noise=0)",
        "missing there, so fresh: none",
        "of another shape, so fresh: none",
        "extra there, so unused: none",
    ]


@pytest.mark.usefixtures("wide")
def test_paths_on_two_devices(file, imported, data_dir):
    """Growing on two devices has the same result as on one, including the noise."""
    config = config_of(data_dir, file, **{"mesh.path": 2, "growth_noise": 0.25, "seed": 3})
    setup = Setup(config)
    carry, lines = first_carry(setup, config)
    assert "noise of 0.25 of the deviation of every kernel (growth_noise; seed=3)" in lines[1]
    found = carry.state.variables
    kernel = found["params"]["stack_1"]["block_1"]["conv_1"]["conv"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (1, *kernel.shape[1:])
    before = jax.device_get(mp.load_run(imported).variables)
    fresh = jax.device_get(setup.fresh_carry(3).state.variables)
    expected = grow(before, fresh, setup.model, 0.25)
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)  # float32
    jax.tree.map(close, jax.device_get(found), expected)


@pytest.mark.usefixtures("wide")
def test_other_classes_in_more_paths(arrays, data_dir, tmp_path):
    import safetensors.numpy

    other = {"linear.weight": np.ones((7, 64), np.float32), "linear.bias": np.ones(7, np.float32)}
    path = tmp_path / "other.safetensors"
    safetensors.numpy.save_file(arrays | other, path)
    config = config_of(data_dir, path)
    setup = Setup(config)
    carry, lines = first_carry(setup, config)
    assert "dense/dense starts afresh: 7 classes there and 10 here" in lines
    params, fresh = carry.state.params, setup.fresh_carry(config.seed).state.params
    np.testing.assert_array_equal(*(p["dense"]["dense"]["kernel"] for p in (params, fresh)))
    kernel = params["stack_1"]["block_1"]["conv_1"]["conv"]["kernel"]
    expected = arrays["layer1.0.conv1.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(kernel, np.stack([expected, expected]))


REFUSED = {
    "deeper": (
        "file",
        "ResNet14-2-CC",
        {},
        r"\(growing from 1 path to 2\) gives .*missing there: ",
    ),
    "a deeper run": (
        "imported",
        "ResNet14-2-CC",
        {},
        r"\(growing from 1 path to 2\) gives .*missing ",
    ),
    "other kind": ("file", "BaseCNN-2-CC", {"model.options": ""}, "nothing in it fits"),
    "discrete": (
        "file",
        "ResNet8-2-CC",
        {"model.options": "shortcut=centered,k=1"},
        "cannot grow from 1 path to 2: discrete routing",
    ),
}


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_leaves_nothing(case, request, data_dir, tmp_path):
    source, name, changes, said = REFUSED[case]
    config = config_of(data_dir, request.getfixturevalue(source), name, **changes)
    with pytest.raises(UserError, match=said) as caught:
        mp.Trainer(config).fit(tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
