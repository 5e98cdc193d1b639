"""Single routers: the custom backward pass against autodiff, and against memory bandwidth."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from multipath_jax import routing
from multipath_jax.benchmark.networks import compiled
from multipath_jax.benchmark.rows import Part, Row, at_most, exactly, megabytes
from multipath_jax.benchmark.settings import Problem, Settings
from multipath_jax.benchmark.timing import calling
from multipath_jax.layers import CrossConnect
from multipath_jax.models import create_model
from multipath_jax.parallel.compilation import peak_bytes

HIDDEN = 16  # d of every gate of the paper


class RouterShape(NamedTuple):
    """A cross-connection from m tensors of shape ``[b, *features]`` to n.

    Attributes:
      m, n: numbers of inputs and outputs.
      batch: batch size b.
      features: (h, w, c), or (c,) after a dense layer.
    """

    m: int
    n: int
    batch: int
    features: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.m}->{self.n} {'x'.join(map(str, self.features))} batch {self.batch}"

    def tensor_bytes(self, dtype: str) -> int:
        """The size of one tensor in bytes."""
        return self.batch * math.prod(self.features) * jnp.dtype(dtype).itemsize

    def forward_bytes(self, dtype: str) -> int:
        """Bytes moved by a forward pass: every input is read and every output written once."""
        return (self.m + self.n) * self.tensor_bytes(dtype)

    def backward_bytes(self, dtype: str) -> int:
        """Bytes moved by a backward pass: inputs and all gradients, once each."""
        return (2 * self.m + self.n) * self.tensor_bytes(dtype)

    def at_least(self, count: int, dtype: str) -> "RouterShape":
        """The shape with a batch for which a forward pass moves at least ``count`` bytes."""
        one = self._replace(batch=1).forward_bytes(dtype)
        return self._replace(batch=max(self.batch, math.ceil(count / one)))


def router_shapes(problem: Problem) -> list[RouterShape]:
    """The distinct shapes of the cross-connections of a network, in order."""
    found = []

    def note(call, args, kwargs, context):
        if isinstance(context.module, CrossConnect) and context.method_name == "__call__":
            m, b, *features = args[0].shape
            found.append(RouterShape(m, context.module.num_outputs, b, tuple(features)))
        return call(*args, **kwargs)

    model = create_model(problem.network, problem.num_classes)
    images = jnp.zeros((1, *problem.image_shape))
    with nn.intercept_methods(note):
        jax.eval_shape(model.init, jax.random.key(0), images)
    return [shape._replace(batch=problem.batch) for shape in dict.fromkeys(found)]


def random_router(shape: RouterShape, dtype: str) -> tuple[tuple, routing.GateParams, tuple]:
    """Random inputs, gate parameters and output gradients."""
    keys = iter(jax.random.split(jax.random.key(0), shape.m + shape.n + 2))
    tensor = (shape.batch, *shape.features)
    m, c, d, n = shape.m, shape.features[-1], HIDDEN, shape.n
    xs = tuple(jax.random.normal(next(keys), tensor, jnp.dtype(dtype)) for _ in range(m))
    dys = tuple(jax.random.normal(next(keys), tensor, jnp.dtype(dtype)) for _ in range(n))
    w1 = jax.random.normal(next(keys), (m, c, d)) / math.sqrt(c)
    w2 = jax.random.normal(next(keys), (m, d, n)) / math.sqrt(d)
    return xs, routing.GateParams(w1, jnp.zeros((m, d)), w2, jnp.zeros((m, n))), dys


def by_autodiff(xs: tuple, params: routing.GateParams) -> tuple:
    """`routing.gated_cross_connect` with autodiff instead of its custom backward pass."""
    each = [jax.tree.map(lambda p, i=i: p[i], params) for i in range(len(xs))]
    gates = [routing.gate(x, p) for x, p in zip(xs, each, strict=True)]
    return routing.cross_connect(xs, gates)


def forward_and_backward(function: Callable, xs: tuple, params, dys: tuple) -> tuple:
    """The outputs, and the gradients with respect to ``xs`` and ``params``."""
    ys, pull = jax.vjp(function, xs, params)
    return ys, pull(dys)


WHOLE = {"custom": {}, "autodiff": {"custom_vjp": False}}


def _backward_cases(settings: Settings) -> list[RouterShape | str]:
    """The routers of several networks, and the whole step of one network."""
    networks = settings.choose(
        ("BaseCNN-2-CC",),
        ("BaseCNN-2-CC", "BaseCNN-4-CC", "ResNet20-2-CC", "ResNet20-4-CC", "VGG13-2-CC"),
        ("ResNet18-2-CC",),
    )
    shapes = [shape for network in networks for shape in router_shapes(settings.problem(network))]
    return [*(_filling(settings, shape) for shape in dict.fromkeys(shapes)), networks[0]]


def _backward(settings: Settings, case: RouterShape | str) -> Iterator[Row]:
    if isinstance(case, RouterShape):
        yield from _compare_backward(settings, case)
        return
    problem = settings.problem(case)
    steps = compiled(settings, {name: (problem, options) for name, options in WHOLE.items()})
    times = settings.interleave(steps)
    sizes = {name: step.bytes for name, step in steps.items()}
    subject = f"{case} batch {problem.batch}, whole step"
    yield from _time_and_memory(subject, times, sizes)


# The custom backward pass over autodiff, in time and compiled memory.
BACKWARD = Part(_backward_cases, _backward)


def _filling(settings: Settings, shape: RouterShape) -> RouterShape:
    """On accelerators, increases the batch so that a router takes longer than its dispatch."""
    if settings.on_cpu or len(shape.features) == 1:
        return shape
    return shape.at_least(settings.router_bytes, settings.dtype)


def _compare_backward(settings: Settings, shape: RouterShape) -> Iterator[Row]:
    arguments = random_router(shape, settings.dtype)
    programs = {
        name: jax.jit(partial(forward_and_backward, function)).lower(*arguments).compile()
        for name, function in (
            ("custom", routing.gated_cross_connect),
            ("autodiff", by_autodiff),
        )
    }
    times = settings.interleave(
        {
            name: calling(partial(program, *arguments), block_each=settings.on_cpu)
            for name, program in programs.items()
        }
    )
    sizes = {name: peak_bytes(program) for name, program in programs.items()}
    yield from _time_and_memory(f"router {shape}", times, sizes)


def _time_and_memory(subject, times, sizes) -> Iterator[Row]:
    """Yields rows for the time and the memory of ``custom`` and ``autodiff``."""
    figures = {f"{name} ms": times.milliseconds(name) for name in sizes}
    ratio = times.ratio("custom", "autodiff")
    yield Row(subject, "custom / autodiff, time", ratio, at_most(1.0), figures)
    figures = {f"{name} MB": megabytes(size) for name, size in sizes.items()}
    known = None not in sizes.values()
    memory = exactly(sizes["custom"] / sizes["autodiff"]) if known else None
    note = "" if known else "this backend does not report memory"
    yield Row(subject, "custom / autodiff, memory", memory, at_most(1.0), figures, note)


def large_routers(settings: Settings) -> list[RouterShape]:
    """The routers of several networks on feature maps, in batches larger than any cache."""
    networks = settings.choose(
        ("BaseCNN-2-CC",), ("BaseCNN-2-CC", "BaseCNN-4-CC", "ResNet20-3-CC"), ("ResNet18-2-CC",)
    )
    shapes = [
        shape.at_least(settings.router_bytes, settings.dtype)
        for network in networks
        for shape in router_shapes(settings.problem(network))
        if len(shape.features) > 1
    ]
    return list(dict.fromkeys(shapes))


def against_copy(settings: Settings, shape: RouterShape) -> Iterator[Row]:
    """Yields rows for a router over the time to move its bytes at the bandwidth of a copy."""
    xs, params, dys = random_router(shape, settings.dtype)
    function = routing.gated_cross_connect
    _, pull = jax.jit(partial(jax.vjp, function))(xs, params)
    programs = {
        # A negation instead of a copy, which the compiler would optimize away.
        "copy": partial(jax.jit(lambda xs: [-x for x in xs]), xs),
        "forward": partial(jax.jit(function), xs, params),
        "backward": partial(jax.jit(lambda pull, dys: pull(dys)), pull, dys),
    }
    times = settings.interleave(
        {name: calling(call, block_each=settings.on_cpu) for name, call in programs.items()}
    )
    copied = 2 * shape.m * shape.tensor_bytes(settings.dtype)
    bandwidth = copied / times.milliseconds("copy") / 1e6
    for name, moved in (
        ("forward", shape.forward_bytes(settings.dtype)),
        ("backward", shape.backward_bytes(settings.dtype)),
    ):
        yield Row(
            f"router {shape}",
            f"{name} / moving its bytes",
            times.ratio(name, "copy", scale=copied / moved),
            None if settings.on_cpu else at_most(1.3),
            {
                f"{name} ms": times.milliseconds(name),
                "limit ms": moved / bandwidth / 1e6,
                "to move MB": megabytes(moved),
                "copy GB/s": bandwidth,
            },
        )
