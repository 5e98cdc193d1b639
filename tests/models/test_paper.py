"""Every row of Tables 2, 3 and 4 exists by name and has the printed size."""

import functools

import pytest

import multipath_jax
from multipath_jax.models import paper
from multipath_jax.models.complexity import complexity

# The depth that a name or Table 1 gives. WRN-40 counts the projections of its three shortcuts,
# HyperWRN its two, beside the longest way; CapsNet's routing multiplies without weights.
DEPTHS = {
    "BaseCNN": 9, "WideCNN": 9, "DeepCNN": 13, "BaseCNN-2-CC": 9, "BaseCNN-2-CP": 9,
    "SEBaseCNN": 9, "All-Ensemble": 13, "VGG16": 16, "HighwayNet": 19,
    "ResNet20": 20, "ResNet20-3-CC": 20, "ResNet20-3-CP": 22, "ResNet110": 110, "ResNet164": 164,
    "SEResNet110": 110, "ResNet18-2-CC": 18, "ResNet101": 101,
}  # fmt: skip
ROUTERS = {"BaseCNN-3-CC": 5, "BaseCNN-3-CP": 4, "ResNet20-2-CC": 4, "ResNet20-2-CP": 3,
           "ResNet18-2-CC": 5, "BaseCNN-3": 0, "Cr-Stitch2": 0}  # fmt: skip


@functools.cache
def measured(row):
    return complexity(multipath_jax.create_model(row.model, row.num_classes), row.image_shape)


@functools.cache
def by_name(name):
    return measured(paper.rows(model=name)[0])


def each(names):
    return pytest.mark.parametrize("name", names)


def each_row():
    """Those whose 110 layers take long to trace are slow tests; ResNet110 itself is not."""
    deep = {"BlockDrop", "ConvNet-AIG-all", "SkipNet", "SEResNet110"}
    for row in paper.ROWS:
        marks = pytest.mark.slow if row.model in deep else ()
        yield pytest.param(row, id=f"{row.table}: {row.network}", marks=marks)


@pytest.mark.parametrize("row", list(each_row()))
def test_the_parameters_are_those_that_the_paper_prints(row):
    off = abs(measured(row).params / 1e6 - row.params)
    if row.exception:
        assert off > row.tolerance, "not an exception any more"
    else:
        assert off <= row.tolerance


@each(DEPTHS)
def test_the_depth_is_the_customary_one(name):
    assert by_name(name).depth == DEPTHS[name]


@each(ROUTERS)
def test_routers_are_counted(name):
    assert by_name(name).routers == ROUTERS[name]


def test_the_tables_have_all_their_rows():
    assert [len(paper.rows(table)) for table in (2, 3, 4)] == [20, 19, 9]


def test_list_models_has_every_network_of_the_tables():
    assert {row.model for row in paper.ROWS} <= set(multipath_jax.list_models())


def test_multiply_adds_are_those_of_the_definition():
    convs = [(32, 3, 32), (32, 32, 32), (16, 32, 64), (16, 64, 64), (8, 64, 128), (8, 128, 128)]
    base = sum(size**2 * 9 * c * f for size, c, f in convs) + 8192 * 32 + 32 * 32 + 32 * 10
    assert by_name("BaseCNN").multiply_adds == base
    gates = [(1, 3), (2, 32), (2, 64), (2, 128), (2, 32)]
    routing = sum(m * (c * 16 + 16 * 2) for m, c in gates)
    assert by_name("BaseCNN-2-CC").multiply_adds == 2 * base + routing


def test_grouped_convolutions_count_their_groups():
    """ResNet-18's 1.814G multiply-adds; two groups halve the 3x3 layers of a wide bottleneck."""
    assert by_name("ResNet18").multiply_adds == pytest.approx(1.814e9, rel=1e-3)
    assert by_name("ResNeXt50-2-64").multiply_adds < by_name("WideResNet50-2").multiply_adds
