"""Tests of the networks of Section 6.4: their routers, and their sizes against torchvision's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multipath_jax import create_model
from multipath_jax.errors import UserError

TINY = jax.random.normal(jax.random.key(1), (2, 33, 33, 3))  # odd, like 7x7 maps in deeper layers

# Numbers of parameters for 1000 classes, from torchvision's documentation of the same networks.
# "ResNeXt50-2-64" is `ResNet(Bottleneck, [3, 4, 6, 3], groups=2, width_per_group=64)`, for which
# torchvision has no name. It is wide_resnet50_2 with two groups in its 3x3 convolutions of 128,
# 256, 512 and 1024 channels, which removes half of their weights:
# 9/2 (3*128^2 + 4*256^2 + 6*512^2 + 3*1024^2).
TORCHVISION = {
    "ResNet18": 11_689_512,
    "ResNet34": 21_797_672,
    "ResNet50": 25_557_032,
    "ResNet101": 44_549_160,
    "ResNet152": 60_192_808,
    "WideResNet50-2": 68_883_240,
    "ResNeXt50-2-64": 68_883_240 - 22_634_496,
}


def count(name, classes):
    model = create_model(name, classes)
    images = jnp.zeros((1, 224, 224, 3))
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), images))["params"]
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def initialized(name, **options):
    """The model, and its variables without the records of the initialization.

    Since the records are dropped, XLA compiles only the initializers and not the network.
    """
    model = create_model(name, **options)

    def init():
        variables = model.init(jax.random.key(0), TINY)
        return {key: variables[key] for key in ("params", "batch_stats")}

    return model, jax.jit(init)()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if "101" in name or "152" in name else ())
        for name in TORCHVISION
    ],
)
def test_sizes_are_exactly_torchvision_s(name):
    assert count(name, 1000) == TORCHVISION[name]


@pytest.mark.parametrize("x", [1, 3])
def test_cross_connections_add_only_their_gates(x):
    def of_gate(c, n, d=16):
        return c * d + d + d * n + n

    stem = 7 * 7 * 3 * 64 + 2 * 64
    gates = of_gate(64, x) + x * sum(of_gate(c, x) for c in (64, 128, 256, 512))
    assert count(f"ResNet18-{x}-CC", 1000) == stem + x * (11_689_512 - stem) + gates


@pytest.mark.parametrize("name", ["ResNet18", "ResNet50"])
def test_maps_are_halved_five_times(name):
    model = create_model(name)
    _, variables = jax.eval_shape(
        lambda: model.init_with_output(
            jax.random.key(0), jnp.zeros((1, 224, 224, 3)), capture_intermediates=True
        )
    )
    recorded = variables["intermediates"]
    sizes = [recorded[n]["__call__"][0].shape[1] for n in ("stem", *(f"stack_{i}" for i in "1234"))]
    assert sizes == [56, 56, 28, 14, 7]


@pytest.mark.slow
def test_a_single_path_runs_and_so_do_its_gradients():
    model, variables = initialized("ResNet18", num_classes=4)

    def loss(params):
        logits, _ = model.apply(
            {**variables, "params": params}, TINY, train=True, mutable=["batch_stats"]
        )
        return jnp.sum(logits**2), logits

    gradients, logits = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    assert logits.shape == (2, 4)
    assert not np.allclose(logits[0], logits[1])
    assert all(jnp.isfinite(gradient).all() for gradient in jax.tree.leaves(gradients))


@pytest.mark.parametrize("x", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_gates_are_recorded_router_by_router(x):
    model = create_model(f"ResNet50-{x}-CC", num_classes=4)

    def run():
        variables = model.init(jax.random.key(0), TINY)
        variables = {key: variables[key] for key in ("params", "batch_stats")}
        return model.apply(variables, TINY, mutable=["intermediates"])

    logits, recorded = jax.eval_shape(run)
    recorded = recorded["intermediates"]
    assert logits.shape == (2, 4)
    assert set(recorded) == {f"router_{number}" for number in range(1, 6)}
    for number in range(1, 6):
        (gates,) = recorded[f"router_{number}"]["gates"]
        assert gates.shape == (1 if number == 1 else x, 2, x)


@pytest.mark.slow
def test_two_paths_run():
    model, variables = initialized("ResNet18-2-CC", num_classes=4)
    logits, recorded = jax.jit(lambda v: model.apply(v, TINY, mutable=["intermediates"]))(variables)
    assert logits.shape == (2, 4)
    assert not np.allclose(logits[0], logits[1])
    for router in recorded["intermediates"].values():
        np.testing.assert_allclose(router["gates"][0].sum(-1), 1, rtol=1e-6)


@pytest.mark.parametrize(("name", "last"), [("ResNet18", "conv_2"), ("ResNet50", "conv_3")])
@pytest.mark.parametrize(("options", "value"), [({}, 1), ({"zero_init": True}, 0)])
def test_zero_init_is_off_unless_asked_for(name, last, options, value):
    model = create_model(name, **options)

    def scales():  # XLA omits the rest of the network
        params = model.init(jax.random.key(0), TINY)["params"]
        return [params[f"stack_{n}"]["block_2"][last]["norm"]["scale"] for n in (1, 2, 3, 4)]

    assert all((scale == value).all() for scale in jax.jit(scales)())


@pytest.mark.parametrize("name", ["WRN-18-2", "ResNet18-2-CP", "WRN-18-1.5-2-CC"])
def test_what_the_paper_does_not_build_is_refused(name):
    with pytest.raises(UserError):
        create_model(name)
