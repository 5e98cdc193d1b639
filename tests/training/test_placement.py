"""Sharded paths: the same results as on one device, no communication between routers."""

import json
import pathlib
import re
import sys
from functools import partial

import flax.linen as nn
import jax
import numpy as np
import pytest
from programs import Program

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "data"))
import toy_datasets

from multipath_jax import create_model
from multipath_jax.config.keys import default_config
from multipath_jax.errors import UserError
from multipath_jax.layers import (
    ConditionalBlock,
    CrossConnect,
    GumbelGate,
    NormReLU,
    PoolDense,
    PreActivationBlock,
    ResidualStack,
    Router,
)
from multipath_jax.models.multipath import MultiPath
from multipath_jax.parallel import placement
from multipath_jax.parallel.devices import make_mesh
from multipath_jax.training.setup import Setup

PROGRAM = pathlib.Path(__file__).with_name("sharded_run.py")
# float32: sums over 8 devices have another order than on one device (errors of 6e-8 each).
TOLERANCE = 3e-5
BATCH = 32  # the batch size of `sharded_run`


def run(data_dir, folder, data, path, network, **settings):
    """Runs `sharded_run` in a subprocess; returns its results by name."""
    out = folder / f"{network}_{data}_{path}.npz"
    given = {"DIGITS": str(data_dir), "SETTINGS": json.dumps(settings)}
    status, said = Program(PROGRAM, data, path, network, out, **given).end(600)
    assert status == 0, said
    return dict(np.load(out))


def largest_difference(found, expected):
    """The largest difference over all arrays, relative to the largest entry of each array."""
    assert found.keys() == expected.keys()
    return max(
        np.abs(found[key] - expected[key]).max() / max(1e-3, np.abs(expected[key]).max())
        for key in expected
        if key != "program"
    )


@pytest.fixture(scope="module")
def on_one_device(data_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    found = {}

    def get(network):
        if network not in found:
            found[network] = run(data_dir, folder, 1, 1, network)
        return found[network]

    return get


@pytest.mark.parametrize(
    ("network", "data", "path"),
    [
        ("ResNet8-2-CC", 2, 2),
        pytest.param("ResNet8-4-CC", 8, 1, marks=pytest.mark.slow),
        pytest.param("ResNet8-4-CC", 4, 2, marks=pytest.mark.slow),
        pytest.param("ResNet8-4-CC", 2, 4, marks=pytest.mark.slow),
        pytest.param("ResNet8-2-CP", 2, 2, marks=pytest.mark.slow),
        pytest.param("PreActivation", 2, 2, marks=pytest.mark.slow),
        pytest.param("BaseCNN-2-CC", 1, 2, marks=pytest.mark.slow),
        pytest.param("BaseCNN-2-CP", 1, 2, marks=pytest.mark.slow),
        pytest.param("BaseCNN-2", 1, 2, marks=pytest.mark.slow),
    ],
)
def test_many_devices_compute_what_one_does(data_dir, tmp_path, on_one_device, network, data, path):
    """Compares parameters, statistics, gradients (the momentum), loss, gates and test error."""
    found = run(data_dir, tmp_path, data, path, network)
    difference = largest_difference(found, on_one_device(network))
    print(f"{network} data {data} path {path}: {difference:.1e}")
    # The gradients of BaseCNN's biases, which precede BatchNorm, are rounding errors (1e-7).
    assert difference < (3e-4 if network.startswith("BaseCNN") else TOLERANCE)
    if network.endswith("CC") and path > 1:
        check_talk(str(found["program"]), network, data, path)


@pytest.mark.slow  # other tests cover one data set on these meshes, and several on two devices
@pytest.mark.parametrize(("data", "path", "own"), [(8, 1, True), (2, 2, False)])
def test_several_data_sets_are_trained_on_as_on_one_device(data_dir, tmp_path, data, path, own):
    (tmp_path / "digits").symlink_to(data_dir / "digits")
    toy_datasets.prepare_two(tmp_path)
    settings = {"dataset.name": "digits+gray+toy", "dataset.proportions": "1, 1, 1"}
    settings["dataset.own_statistics"] = own
    one, many = (
        run(tmp_path, tmp_path, *mesh, "ResNet8-2-CC", **settings)
        for mesh in ((1, 1), (data, path))
    )
    assert "test/gray/error" in one
    assert largest_difference(many, one) < TOLERANCE


def check_talk(program, network, data, path):
    """Checks the collectives over the path axis.

    There must be one per router in the forward pass and one in the backward pass; all others are
    sums of quantities that the paths share.
    """
    along_path = [kind for kind, groups in collectives(program) if spans_path(groups, data, path)]
    routers = len(
        [layer for layer in create_model(network).layers if isinstance(layer, placement.Router)]
    )
    # The first router needs none: its input is one tensor, which is replicated.
    assert along_path.count("reduce-scatter") == routers - 1
    assert along_path.count("all-gather") == routers - 1
    # All others are sums of what the paths share (logits, gradients of the stem and of the first
    # gate, metrics), not of feature maps, whose first axis is the local batch.
    assert set(along_path) <= {"reduce-scatter", "all-gather", "all-reduce"}
    summed = [line.split(" all-reduce")[0] for line in program.splitlines() if "all-reduce" in line]
    assert summed
    assert not [line for line in summed if re.search(rf"\[{BATCH // data},\d+,\d+", line)]


def collectives(program):
    """Yields the kind and the groups of devices of every collective."""
    kinds = "all-reduce|reduce-scatter|all-gather|collective-permute|all-to-all"
    for line in program.splitlines():
        if match := re.search(rf" ({kinds})(?:-start)?\(.*replica_groups=(.*)", line):
            yield match[1], match[2].partition("use_global")[0]


def spans_path(groups, data, path):
    """Whether a group has devices with different paths and the same part of the batch.

    Device ``i`` of the mesh has part ``i // path`` of the batch, and paths ``i % path``.
    """
    if groups.startswith(
        "mesh["
    ):  # axes are given by name (JAX 0.11) or by number (sums that XLA inserts)
        return re.search(r"\{'(\w+)'", groups)[1] in ("path", "axis_1")
    first = [int(number) for number in re.findall(r"\{([\d,]+)\}", groups)[0].split(",")]
    return len({i % path for i in first}) > 1 and len({i // path for i in first}) == 1


@pytest.mark.parametrize(
    ("name", "path", "message"),
    [
        ("BaseCNN-3-CC", 2, "the 3 paths of BaseCNN-3-CC cannot be divided over 2 devices"),
        ("BaseCNN", 2, "BaseCNN has no paths that can be sharded"),
        ("NDDR-CNN2", 2, "no paths that can be sharded"),
        ("Cr-Stitch2", 2, "no paths that can be sharded"),
        ("BaseCNN-Ensemble", 3, "no paths that can be sharded"),
    ],
)
def test_networks_that_cannot_be_sharded_are_refused(name, path, message):
    with pytest.raises(UserError, match=message):
        placement.check(create_model(name), name, path)
    placement.check(create_model(name), name, 1)


class ForeignNorm(nn.Module):
    """A layer of a path with a BatchNorm that is not synchronized across devices."""

    frozen: bool = False

    @nn.compact
    def __call__(self, x, train=False):
        return nn.BatchNorm(self.frozen or not train, name="own")(x)


def routed(*layers):
    """A network with two paths of ``layers`` between two routers."""
    return MultiPath(
        (
            CrossConnect(2, name="router_1"),
            *layers,
            CrossConnect(2, name="router_2"),
            PoolDense(10, name="dense"),
        )
    )


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (ForeignNorm(name="norm"), "a BatchNorm over a part of the batch only, norm/own; use"),
        (ConditionalBlock(1, gate=GumbelGate, name="block"), "sows auxiliary losses"),
    ],
)
def test_layers_that_see_their_part_of_the_batch_only_are_refused(layer, message):
    model = routed(layer)
    with pytest.raises(UserError, match=f"mesh.path=2: mine .*{message}"):
        placement.check(model, "mine", 2, (8, 8, 1))
    placement.check(model, "mine", 1, (8, 8, 1))


def test_layers_that_see_the_whole_batch_are_not():
    block = partial(PreActivationBlock, 4)
    layers = NormReLU(name="norm"), ResidualStack(block, 1, name="stack"), ForeignNorm(True)
    placement.check(routed(*layers), "mine", 2, (8, 8, 1))


class Own(Router):
    """A router that is not from the package."""


class OwnAdditive(Own):
    additive = True


def test_a_router_of_ones_own_says_whether_its_paths_may_be_sharded():
    def network(router):
        return MultiPath(
            (router(2, name="router_1"), router(2, name="router_2"), PoolDense(10, name="dense"))
        )

    placement.check(network(OwnAdditive), "mine", 2, (8, 8, 1))
    with pytest.raises(UserError, match=r"mesh.path=2: mine has no paths that can"):
        placement.check(network(Own), "mine", 2, (8, 8, 1))


def is_spec(leaf):
    return isinstance(leaf, jax.sharding.PartitionSpec)


def test_parameters_lie_where_their_paths_do(data_dir):
    config = default_config()
    changes = {"model.name": "ResNet8-2-CC", "mesh.data": 1, "mesh.path": 2}
    config.update_from_flattened_dict(changes | {"dataset.data_dir": str(data_dir)})
    setup = Setup(config)
    carry = setup.abstract_carry
    specs = jax.tree.map(lambda leaf: leaf.sharding.spec, carry.state.params)
    assert set(jax.tree.leaves(specs["stem"], is_leaf=is_spec)) == {jax.sharding.PartitionSpec()}
    assert specs["router_1"]["gate"]["w1"] == jax.sharding.PartitionSpec()
    assert specs["router_2"]["gate"]["w1"] == jax.sharding.PartitionSpec("path")
    assert specs["dense"]["dense"]["kernel"] == jax.sharding.PartitionSpec("path")
    momentum = carry.state.opt_state[1][0].trace
    assert jax.tree.map(lambda leaf: leaf.sharding.spec, momentum) == specs


def test_one_group_of_devices_needs_no_placement():
    model = create_model("BaseCNN")
    assert placement.Placement(model, make_mesh(default_config())).apply == model.apply
