"""The peers are the same networks: with the same weights, they compute the same logits."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from multipath_jax import create_model
from multipath_jax.benchmark import peers, vmap_peer

NETWORKS = [("BaseCNN-2-CC", 32), ("ResNet8-3-CC", 16), ("ResNet18-2-CC", 32)]


def ours(name, size, seed=0):
    """Returns images, our network, and random variables, none of which is zero or one."""
    model = create_model(name, 10)
    images = jax.random.normal(jax.random.key(seed), (4, size, size, 3))
    generator = np.random.default_rng(seed)

    def draw(path, leaf):
        if path[-1].key in ("scale", "var"):
            return generator.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        fan_in = max(1, int(np.prod(leaf.shape[-3:-1])))
        return generator.normal(0, fan_in**-0.5, leaf.shape).astype(np.float32)

    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    return images, model, jax.tree_util.tree_map_with_path(draw, shapes)


def modules(variables):
    """Groups variables: ``{kind: [variables of a module, ...]}``, of kinds conv, norm and dense."""
    flat = traverse_util.flatten_dict({**variables})
    found = {}
    for (_, *path, name), array in flat.items():
        found.setdefault(tuple(path), {})[name] = array
    kinds = {"conv": [], "norm": [], "dense": []}
    for path in sorted(found, key=natural):
        last = path[-1].lower()
        kind = "norm" if "norm" in last else "conv" if last.startswith("conv") else "dense"
        kinds[kind].append(found[path])
    return kinds


def natural(path):
    return [[int(s) if s.isdigit() else s for s in re.split(r"(\d+)", name)] for name in path]


def layers(model, variables):
    """Yields ``(layer, its variables)`` in the order of the network."""
    for layer in model.layers:
        yield (
            layer,
            {kind: tree[layer.name] for kind, tree in variables.items() if layer.name in tree},
        )


def logits(model, variables, images, train):
    apply = jax.jit(lambda v, x: model.apply(v, x, train=train, mutable=["batch_stats"])[0])
    return np.asarray(apply(variables, images))


# Plain Flax


@pytest.mark.parametrize(("name", "size"), NETWORKS)
def test_the_vmap_peer_has_the_same_parameters(name, size):
    def count(model):
        shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))
        return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))

    assert count(vmap_peer.create(name, 10, jnp.float32)) == count(create_model(name, 10))


@pytest.mark.parametrize(("name", "size"), NETWORKS[:2])
def test_the_vmap_peer_gives_the_same_logits(name, size):
    images, model, variables = ours(name, size)
    peer = vmap_peer.create(name, 10, jnp.float32)
    mapped = as_vmap_variables(model, variables)
    shapes = jax.eval_shape(peer.init, jax.random.key(0), images)
    assert jax.tree.map(jnp.shape, mapped) == jax.tree.map(jnp.shape, shapes)
    expected = logits(model, variables, images, train=True)
    np.testing.assert_allclose(
        logits(peer, mapped, images, train=True), expected, rtol=1e-3, atol=1e-3
    )


def as_vmap_variables(model, variables):
    """Maps our variables to the names that Flax gives to the modules of the peer."""
    flat, numbers = {}, {}

    def name(scope, kind):
        number = numbers.get((scope, kind), 0)
        numbers[scope, kind] = number + 1
        return f"{kind}_{number}"

    for layer, own in layers(model, variables):
        if layer.name.startswith("router"):
            gate = own["params"]["gate"]
            scope = (name((), "CrossConnect"), "VmapGate_0")
            for number in (0, 1):
                dense = {"kernel": gate[f"w{number + 1}"], "bias": gate[f"b{number + 1}"]}
                for leaf, array in dense.items():
                    flat["params", *scope, f"Dense_{number}", leaf] = array
            continue
        scope = () if layer.name == "stem" else (name((), f"Vmap{KINDS[layer.name[:5]]}"),)
        for kind, flax_name in (("conv", "Conv"), ("norm", "BatchNorm"), ("dense", "Dense")):
            for module in modules(own)[kind]:
                place = (*scope, name(scope, flax_name))
                for leaf, array in module.items():
                    collection = "batch_stats" if leaf in ("mean", "var") else "params"
                    flat[collection, *place, leaf] = array
    return traverse_util.unflatten_dict(flat)


KINDS = {"stage": "ConvStage", "dense": "Dense", "stack": "ResidualStack"}


# PyTorch


@pytest.mark.parametrize(("name", "size"), [*NETWORKS, ("ResNet50-2-CC", 32)])
@pytest.mark.parametrize("train", [True, False])
def test_the_torch_peer_gives_the_same_logits(name, size, train):
    torch = pytest.importorskip("torch", reason="PyTorch (the extra [peers]) is not installed")
    from multipath_jax.benchmark import torch_peer

    images, model, variables = ours(name, size)
    peer = torch_peer.create(name, 10).train(train)
    for (layer, own), theirs in zip(layers(model, variables), peer.layers, strict=True):
        if layer.name.startswith("router"):
            load_gates(torch, theirs, own["params"]["gate"])
        else:
            load_paths(torch, theirs, own, stacked=layer.name != "stem")
    with torch.no_grad():
        found = peer(torch.tensor(np.moveaxis(np.asarray(images), -1, 1).copy())).numpy()
    expected = logits(model, variables, images, train)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def load_gates(torch, router, gate):
    for i, sequence in enumerate(router.gates):
        for number, dense in ((1, sequence[0]), (2, sequence[2])):
            copy(torch, dense.weight, gate[f"w{number}"][i].T)
            copy(torch, dense.bias, gate[f"b{number}"][i])


def load_paths(torch, paths, own, stacked):
    kinds = {
        "conv": torch.nn.Conv2d,
        "norm": torch.nn.modules.batchnorm._BatchNorm,
        "dense": torch.nn.Linear,
    }
    for i, path in enumerate(paths):
        for kind, arrays in modules(own).items():
            theirs = [module for module in path.modules() if isinstance(module, kinds[kind])]
            for module, named in zip(theirs, arrays, strict=True):
                for leaf, array in named.items():
                    load(torch, module, leaf, array[i] if stacked else array)


def load(torch, module, leaf, array):
    if leaf == "kernel" and array.ndim == 4:
        array = array.transpose(3, 2, 0, 1)  # [h w in out] -> [out in h w]
    elif leaf == "kernel":
        if len(array) == 8 * 8 * 128:  # BaseCNN flattens here: [h w c] -> [c h w]
            array = array.reshape(8, 8, 128, -1).transpose(2, 0, 1, 3).reshape(8 * 8 * 128, -1)
        array = array.T
    names = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
    copy(torch, getattr(module, names.get(leaf, leaf)), array)


def copy(torch, tensor, array):
    assert tuple(tensor.shape) == array.shape
    with torch.no_grad():
        tensor.copy_(torch.tensor(np.ascontiguousarray(array)))


# Peers that cannot run


def test_a_peer_that_cannot_run_says_why(monkeypatch):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    assert "multipath_jax[peers]" in peers.missing("torch.compile", "cpu")
    assert peers.missing("nn.vmap", "cpu") is None
