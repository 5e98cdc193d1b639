"""Compiled training steps on random data on the device."""

import math
import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from multipath_jax.benchmark.settings import Problem
from multipath_jax.config.keys import default_config
from multipath_jax.layers import Router, Share
from multipath_jax.models import create_model
from multipath_jax.parallel.compilation import peak_bytes
from multipath_jax.training.optimizer import make_optimizer
from multipath_jax.training.state import create_state
from multipath_jax.training.step import Batch, Step, make_train_step

QUICKLY = {"xla_backend_optimization_level": 0}
BATCHES = 4  # used in turn, so that nothing can be hoisted out of the loop over steps


# Steps per dispatch: a number of unrolled steps; "loop", any number in a loop on the device; or
# "known loop", `KNOWN` steps in a loop with a static length, which saves a check per iteration.
Dispatch = int | Literal["loop", "known loop"]
KNOWN = 64


class CompiledStep:
    """A compiled training step with its state and data; callable as a `timing.Contestant`.

    Attributes:
      compile_seconds: seconds of tracing and compiling.
      bytes: peak memory of a step in bytes; None if unknown.
    """

    def __init__(self, step: Callable, state: PyTree, batches: Batch, dispatch: Dispatch):
        """Compiles the step; donates ``state``.

        Args:
          step: a function ``(state, batch) -> (state, metrics)``.
          state: the training state.
          batches: `BATCHES` stacked batches on the device.
          dispatch: steps per dispatch.
        """

        def one(state, batches, index):
            return step(state, jax.tree.map(lambda array: array[index % BATCHES], batches))[0]

        def some(state, batches, index):
            if dispatch == "known loop":
                return jax.lax.fori_loop(0, KNOWN, lambda i, s: one(s, batches, index + i), state)
            for number in range(dispatch):
                state = one(state, batches, index + number)
            return state

        def many(state, batches, count):
            return jax.lax.fori_loop(0, count, lambda i, s: one(s, batches, i), state)

        self._state, self._batches, self._dispatch = state, batches, dispatch
        function = jax.jit(many if dispatch == "loop" else some, donate_argnums=0)
        start = time.perf_counter()
        self._compiled = function.lower(state, batches, jnp.int32(0)).compile()
        self.compile_seconds = time.perf_counter() - start
        self.bytes = peak_bytes(self._compiled)
        self._indices = [jnp.int32(index) for index in range(BATCHES)]

    def __call__(self, calls: int) -> float:
        """Runs steps, rounded up to whole dispatches, and returns the seconds of ``calls``."""
        start = time.perf_counter()
        taken = calls
        if self._dispatch == "loop":
            self._state = self._compiled(self._state, self._batches, jnp.int32(calls))
        else:
            together = KNOWN if self._dispatch == "known loop" else self._dispatch
            taken = math.ceil(calls / together) * together
            for number in range(0, taken, together):
                index = self._indices[number % BATCHES]
                self._state = self._compiled(self._state, self._batches, index)
        jax.block_until_ready(self._state)
        return (time.perf_counter() - start) * calls / taken


def training_step(model: nn.Module, problem: Problem) -> tuple[Callable, Step]:
    """A function ``seed -> state``, and the training step of a run without augmentation."""
    optimizer = make_optimizer(default_config().optimizer, optax.constant_schedule(1e-3))
    create = partial(create_state, model, optimizer, problem.image_shape)
    return create, make_train_step(model, optimizer, lambda state, batch: batch.images)


def model_step(model: nn.Module, problem: Problem, dispatch: Dispatch) -> CompiledStep:
    """Compiles the `training_step` of a network."""
    create, step = training_step(model, problem)
    on_cpu = jax.default_backend() == "cpu"  # where this option makes compilation faster
    create = jax.jit(create, compiler_options=QUICKLY if on_cpu else None)
    state = create(jnp.uint32(0))
    return CompiledStep(step, state, random_batches(problem), dispatch)


def make_model(problem: Problem, **options: Any) -> nn.Module:
    """The network of a problem."""
    dtype = jnp.dtype(problem.dtype)
    return create_model(problem.network, problem.num_classes, dtype=dtype, **options)


@cache  # several parts measure the same step
def network_step(
    problem: Problem,
    routers: bool = True,
    dispatch: Dispatch | None = None,
    **options: Any,
) -> CompiledStep:
    """Compiles the step of a problem's network; results are cached.

    Args:
      problem: the problem.
      routers: whether the network has routers; without them, paths are independent.
      dispatch: steps per dispatch; None: as in a run on this backend.
      **options: options of the network, such as ``execution`` and ``custom_vjp``.
    """
    model = make_model(problem, **options)
    model = model if routers else without_routers(model)
    usual = 1 if jax.default_backend() == "cpu" else "loop"
    return model_step(model, problem, dispatch or usual)


def random_batches(problem: Problem) -> Batch:
    """`BATCHES` stacked batches of random images and labels."""
    images_key, labels_key = jax.random.split(jax.random.key(1))
    count = (BATCHES, problem.batch)
    images = jax.random.normal(images_key, (*count, *problem.image_shape))
    return Batch(images, jax.random.randint(labels_key, count, 0, problem.num_classes))


def without_routers(model: nn.Module) -> nn.Module:
    """Removes the routers of a `MultiPath` network, like BaseCNN-X."""
    first = next(layer for layer in model.layers if isinstance(layer, Router))
    layers = [
        Share(first.num_outputs, name=first.name) if layer is first else layer
        for layer in model.layers
        if layer is first or not isinstance(layer, Router)
    ]
    return model.clone(layers=tuple(layers))
