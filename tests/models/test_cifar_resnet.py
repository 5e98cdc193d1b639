"""Tests of the networks of Section 6.3: numbers of parameters, routers and execution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multipath_jax import create_model
from multipath_jax.errors import UserError

TINY = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))


def shapes(name, images=TINY, **options):
    model = create_model(name, **options)
    return jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))


def count(name, **options):
    return sum(leaf.size for leaf in jax.tree.leaves(shapes(name, **options)["params"]))


def initialized(name, **options):
    """The model, and its variables without the records of the initialization.

    Since the records are dropped, XLA compiles only the initializers and not the network.
    """
    model = create_model(name, **options)

    def init():
        variables = model.init(jax.random.key(0), TINY)
        return {key: variables[key] for key in ("params", "batch_stats")}

    return model, jax.jit(init)()


def of_conv(k, c, f):
    """The parameters of a kernel, and of BatchNorm's scale and shift."""
    return k * k * c * f + 2 * f


def of_gate(c, n, d=16):
    return c * d + d + d * n + n


def of_stacks(k, projection=True):
    """The parameters of 3 stacks of k basic blocks; stacks 2 and 3 double the channels."""
    same = sum(2 * k * of_conv(3, f, f) for f in (16, 32, 64))
    doubling = sum(of_conv(3, f, 2 * f) - of_conv(3, 2 * f, 2 * f) for f in (16, 32))
    return same + doubling + projection * sum(of_conv(1, f, 2 * f) for f in (16, 32))


# --- Sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("x", [2, pytest.param(5, marks=pytest.mark.slow)])
@pytest.mark.parametrize("shortcut", ["projection", "identity"])
def test_cross_connections_add_only_their_gates(x, shortcut):
    ends, path = of_conv(3, 3, 16), of_stacks(3, shortcut == "projection") + 64 * 10 + 10
    gates = of_gate(16, x) + x * sum(of_gate(c, x) for c in (16, 32, 64))
    assert count("ResNet20", shortcut=shortcut) == ends + path
    assert count(f"ResNet20-{x}-CC", shortcut=shortcut) == ends + x * path + gates


@pytest.mark.parametrize("x", [1, 3])
def test_cross_predictions_are_the_stem_and_two_layers_more(x):
    """By Algorithm 1, each input has X outputs, each with as many channels as a tensor there."""
    convs = of_conv(3, 3, x * 16) + x * (of_conv(3, 16, x * 16) + of_conv(3, 32, x * 32))
    gates = of_gate(3, x) + x * (of_gate(16, x) + of_gate(32, x))
    assert count(f"ResNet20-{x}-CP") == convs + gates + x * (of_stacks(3) + 64 * 10 + 10)


def test_cross_predictions_leave_each_stack_its_own_strided_start():
    params = shapes("ResNet20-2-CP")["params"]
    assert params["stack_2"]["block_1"]["projection"]["conv"]["kernel"].shape == (2, 1, 1, 16, 32)
    assert params["stack_3"]["block_1"]["projection"]["conv"]["kernel"].shape == (2, 1, 1, 32, 64)


@pytest.mark.parametrize("name", ["ResNet8-2-CC", "ResNet8-2-CP", "WRN-10-2"])
def test_no_convolution_has_a_bias(name):
    paths = jax.tree_util.tree_leaves_with_path(shapes(name)["params"])
    names = {jax.tree_util.keystr(path) for path, _ in paths}
    assert not [name for name in names if "['conv']['bias']" in name]


# --- Names ---------------------------------------------------------------------------------------


def test_any_depth_of_the_right_form_exists():
    for name in ("ResNet8", "ResNet44-7-CC", "ResNet56-2-CP", "WRN-16-8", "SEResNet56"):
        create_model(name)
    # 20 - 8 = 2 x 6: two more blocks in each stack; all blocks but the first of a stack are alike.
    assert count("ResNet20") - count("ResNet8") == of_stacks(3) - of_stacks(1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ResNet21", r"ResNet21: the depth must be 6k\+2 .* such as 20"),
        ("ResNet2", r"such as 8"),
        ("ResNet33-2-CC", r"6k\+2"),
        ("WRN-41-2", r"WRN-41-2: the depth must be 6k\+4 .* such as 40"),
        ("SEResNet111", r"SEResNet111: the depth must be 6k\+2"),
        ("ResNet20-0-CC", "needs at least 1 path and 1 class"),
        ("ResNet164-2-CC", "no network"),
        ("ResNet50-2-CP", "no network"),
    ],
)
def test_other_depths_are_refused(name, message):
    with pytest.raises(UserError, match=message):
        create_model(name)


@pytest.mark.parametrize("name", ["ResNet18", "ResNet50-2-CC"])
def test_depths_of_imagenet_s_networks_are_theirs(name):
    assert "stack_4" in shapes(name)["params"]
    assert "stack_4" not in shapes("ResNet20")["params"]


# --- Runs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ResNet8", "WRN-10-1", "SEResNet8"])
def test_a_single_path_runs(name):
    model, variables = initialized(name, num_classes=4)
    logits, _ = jax.jit(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]))(
        variables, TINY
    )
    assert logits.shape == (2, 4)
    assert jnp.isfinite(logits).all()
    assert not np.allclose(logits[0], logits[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ResNet164", "ResNet110", "SEResNet110", "WRN-40-2"])
def test_deep_networks_have_the_right_output(name):
    model = create_model(name, 100)
    images = jnp.zeros((2, 32, 32, 3))
    logits, _ = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), images))
    assert logits.shape == (2, 100)


@pytest.mark.parametrize("x", [1, 3])
@pytest.mark.parametrize(("routing", "routers"), [("CC", 4), ("CP", 3)])
def test_gates_are_recorded_router_by_router(routing, routers, x):
    model = create_model(f"ResNet8-{x}-{routing}", num_classes=4)

    def run():
        variables = model.init(jax.random.key(0), TINY)
        variables = {key: variables[key] for key in ("params", "batch_stats")}
        return model.apply(variables, TINY, mutable=["intermediates"])

    logits, recorded = jax.eval_shape(run)
    recorded = recorded["intermediates"]
    assert logits.shape == (2, 4)
    assert set(recorded) == {f"router_{number}" for number in range(1, routers + 1)}
    for number in range(1, routers + 1):
        (gates,) = recorded[f"router_{number}"]["gates"]
        assert gates.shape == (1 if number == 1 else x, 2, x)


def loss_and_gradients(name, variables, **overrides):
    model = create_model(name, **overrides)
    weights = jax.random.normal(jax.random.key(2), (2, 10))  # a loss that depends on every logit

    def loss(params):
        logits, _ = model.apply(
            {**variables, "params": params}, TINY, train=True, mutable=["batch_stats"]
        )
        return jnp.sum(weights * logits), logits

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])


def assert_alike(results, others, rtol):
    """Compares losses, logits, and each gradient up to ``rtol`` times its largest entry."""
    (values, gradients), (other_values, other_gradients) = results, others
    for a, b in zip(jax.tree.leaves(values), jax.tree.leaves(other_values), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)
    for path, a in jax.tree_util.tree_leaves_with_path(gradients):
        b = other_gradients
        for key in path:
            b = b[key.key]
        np.testing.assert_allclose(
            a, b, atol=rtol * float(jnp.abs(b).max()), err_msg=jax.tree_util.keystr(path)
        )


@pytest.mark.parametrize(
    "name", ["ResNet8-3-CC", pytest.param("ResNet20-3-CC", marks=pytest.mark.slow)]
)
def test_the_written_out_backward_pass_is_autodiff_s_inside_a_whole_network(name):
    _, variables = initialized(name)
    custom, auto = (
        loss_and_gradients(name, variables, custom_vjp=custom_vjp) for custom_vjp in (True, False)
    )
    for number in range(1, 5):
        gate = auto[1][f"router_{number}"]["gate"]
        assert all(jnp.abs(gradient).max() > 0 for gradient in gate.values())
    # The forward passes are the same operations, and the backward passes are the same sums in
    # another order. The float32 rounding of 19 layers is 3e-6 of the largest entry (measured).
    assert_alike(custom, auto, rtol=1e-4)


@pytest.mark.slow
def test_grouped_execution_changes_no_parameter_and_no_result():
    name = "ResNet8-2-CP"  # has convolutions both in its routers and between them
    _, variables = initialized(name)
    _, grouped = initialized(name, execution="grouped")
    jax.tree.map(np.testing.assert_array_equal, variables, grouped)
    # Grouped convolutions sum in another order, and BatchNorm over as few as 8 values amplifies the
    # rounding errors.
    assert_alike(
        loss_and_gradients(name, variables),
        loss_and_gradients(name, variables, execution="grouped"),
        rtol=1e-3,
    )


def test_zero_init_leaves_only_the_shortcuts():
    model, variables = initialized("ResNet8", zero_init=True)
    norms = [variables["params"][f"stack_{n}"]["block_1"]["conv_2"]["norm"] for n in (1, 2, 3)]
    assert all((norm["scale"] == 0).all() for norm in norms)
    without = jax.tree.map(lambda v: v, variables)
    for number in (1, 2, 3):
        without["params"][f"stack_{number}"]["block_1"]["conv_1"]["conv"]["kernel"] += 1
    run = jax.jit(lambda v: model.apply(v, TINY))
    np.testing.assert_array_equal(run(variables), run(without))
    _, usual = initialized("ResNet8")
    assert (usual["params"]["stack_1"]["block_1"]["conv_2"]["norm"]["scale"] == 1).all()


@pytest.mark.slow
def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters():
    model, variables = initialized("ResNet8-2-CC", dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    exact, logits = (
        jax.jit(lambda v, network=network: network.apply(v, TINY))(variables)
        for network in (create_model("ResNet8-2-CC"), model)
    )
    assert logits.dtype == jnp.float32
    assert not np.allclose(exact[0], exact[1])
    # With 8 bits of mantissa and 8 layers, errors are a few percent of the largest logit.
    np.testing.assert_allclose(logits, exact, atol=0.05 * float(jnp.abs(exact).max()))
    assert not np.array_equal(logits, exact)
