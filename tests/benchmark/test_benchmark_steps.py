"""The compiled training step, and the network without routers."""

import jax
import numpy as np
import pytest

from multipath_jax import create_model
from multipath_jax.benchmark import steps
from multipath_jax.benchmark.settings import Problem
from multipath_jax.layers import CrossConnect, DenseLayer, Router
from multipath_jax.models.multipath import MultiPath

TINY = Problem("none", 2, (4, 4, 3), 5, "float32")


@pytest.fixture
def model():
    layers = (CrossConnect(2, name="router_1"), DenseLayer(5, relu=False, name="dense_1"))
    return MultiPath(layers)


@pytest.mark.parametrize("dispatch", [1, "loop"])
def test_a_step_trains_and_times_itself(model, dispatch):
    step = steps.model_step(model, TINY, dispatch)
    before = jax.device_get(step._state)
    assert step(3) > 0
    after = jax.device_get(step._state)
    assert int(after.step - before.step) == 3
    assert not np.array_equal(*(s.params["dense_1"]["dense"]["kernel"] for s in (before, after)))
    assert step.compile_seconds > 0
    parameters = sum(leaf.nbytes for leaf in jax.tree.leaves(before.params))
    assert step.bytes > 2 * parameters  # with momentum, batches and temporary arrays


def test_all_dispatches_take_the_same_steps(model, monkeypatch):
    found = []
    monkeypatch.setattr(steps, "KNOWN", 2)
    for dispatch in (1, 3, "loop", "known loop"):
        step = steps.model_step(model, TINY, dispatch)
        step(6)
        found.append(jax.device_get(step._state.params))
    for other in found[1:]:  # the same operations in different programs
        close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)  # noqa: E731
        jax.tree.map(close, found[0], other)


def test_whole_dispatches_are_taken_and_the_steps_asked_for_timed(model, monkeypatch):
    step = steps.model_step(model, TINY, 4)
    ticks = iter([10.0, 18.0])
    monkeypatch.setattr(steps.time, "perf_counter", lambda: next(ticks))
    assert step(6) == 6.0  # eight steps took 8 s
    assert int(step._state.step) == 8


@pytest.mark.parametrize("name", ["BaseCNN-3-CC", "ResNet8-3-CC"])
def test_without_routers_the_paths_are_left(name):
    model = create_model(name)
    bare = steps.without_routers(model)
    images = np.zeros((1, 32, 32, 3), np.float32)
    full, rest = (
        jax.eval_shape(m.init, jax.random.key(0), images)["params"] for m in (model, bare)
    )
    routers = {layer.name for layer in model.layers if isinstance(layer, Router)}
    assert jax.tree.map(np.shape, {k: v for k, v in full.items() if k not in routers}) == (
        jax.tree.map(np.shape, {**rest})
    )
