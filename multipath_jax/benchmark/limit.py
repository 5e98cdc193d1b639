"""Training steps and routers against a lower bound on their time (a roofline model)."""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jaxtyping import Float

from multipath_jax.benchmark.networks import compiled
from multipath_jax.benchmark.routers import (
    RouterShape,
    against_copy,
    large_routers,
    router_shapes,
)
from multipath_jax.benchmark.rows import Part, Row
from multipath_jax.benchmark.settings import Problem, Settings
from multipath_jax.benchmark.steps import make_model, random_batches, training_step
from multipath_jax.benchmark.timing import calling, spread
from multipath_jax.models.complexity import products

OPTIMIZER_BYTES = 16  # per parameter: float32 parameter and momentum, read and written


class Work(NamedTuple):
    """The operations of a program, which run one after another.

    Attributes:
      operations: floating-point operations of each, ``[things]``.
      moved: bytes read and written by each, ``[things]``.
    """

    operations: Float[np.ndarray, " things"]
    moved: Float[np.ndarray, " things"]

    def seconds(
        self, rate: Float[np.ndarray, " rounds"], bandwidth: Float[np.ndarray, " rounds"]
    ) -> Float[np.ndarray, " rounds"]:
        """The lower bound: for each operation, the maximum of the times to compute and to move.

        Args:
          rate: floating-point operations per second, ``[rounds]``.
          bandwidth: bytes per second, ``[rounds]``.

        Returns:
          Seconds, ``[rounds]``.
        """
        computing = self.operations[:, None] / rate
        moving = self.moved[:, None] / bandwidth
        return np.maximum(computing, moving).sum(0)


def step_work(problem: Problem) -> Work:
    """The work of a training step, from its jaxpr; nothing is compiled.

    Counted are all convolutions and matrix products, forward and backward, with their operands and
    results; the bytes of routers on feature maps (`RouterShape`); and reading and writing of
    parameters and momentum. The rest (BatchNorm, ReLU, pooling, sums) is assumed to be free.
    """
    create, step = training_step(make_model(problem), problem)
    state = jax.eval_shape(create, jnp.uint32(0))
    batch = jax.eval_shape(lambda: jax.tree.map(lambda a: a[0], random_batches(problem)))
    program = jax.make_jaxpr(step)(state, batch)
    things = list(_products(program.jaxpr))
    for shape in router_shapes(problem):
        if len(shape.features) > 1:
            things += [(0, shape.forward_bytes(problem.dtype))]
            things += [(0, shape.backward_bytes(problem.dtype))]
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    things.append((0, OPTIMIZER_BYTES * parameters))
    return Work(*np.array(things, float).T)


def _products(jaxpr: core.Jaxpr) -> Iterator[tuple[int, int]]:
    """Yields operations and bytes of the convolutions and matrix products of a program."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in ("conv_general_dilated", "dot_general"):
            # The zeros of a dilated input are not counted.
            zeros = np.prod(eqn.params.get("lhs_dilation", ()), dtype=int)
            arrays = [atom.aval for atom in (*eqn.invars, *eqn.outvars)]
            moved = sum(array.size * array.dtype.itemsize for array in arrays)
            yield 2 * products(eqn) // zeros, moved
        for body in core.jaxprs_in_params(eqn.params):
            # A scan repeats its body.
            yield from eqn.params.get("length", 1) * list(_products(body))


def _against_limit(settings: Settings, problem: Problem) -> Iterator[Row]:
    work = step_work(problem)
    step = compiled(settings, {"step": (problem, {})})
    pieces, operations, moved = _yardsticks(settings)
    times = settings.interleave(step | pieces)
    rate, bandwidth = operations / times.seconds["product"], moved / times.seconds["copy"]
    least = work.seconds(rate, bandwidth)
    yield Row(
        str(problem),
        "step / the least for its operations and bytes",
        spread(times.seconds["step"] / least),
        figures={
            "step ms": times.milliseconds("step"),
            "step images/s": 1e3 * problem.batch / times.milliseconds("step"),
            "limit ms": 1e3 * float(np.median(least)),
            "operations GFLOP": work.operations.sum() / 1e9,
            "to move MB": work.moved.sum() / 1e6,
            "product TFLOP/s": float(np.median(rate)) / 1e12,
            "copy GB/s": float(np.median(bandwidth)) / 1e9,
        },
    )


def _yardsticks(settings: Settings) -> tuple[dict[str, Any], float, float]:
    """A matrix product and a copy as contestants, with the operations and the bytes of these."""
    side, dtype = (1024 if settings.on_cpu else 8192), jnp.dtype(settings.dtype)
    matrix = jax.random.normal(jax.random.key(0), (side, side), dtype)
    numbers = jnp.ones(settings.router_bytes // (2 * dtype.itemsize), dtype)
    programs = {
        "product": partial(jax.jit(jnp.matmul), matrix, matrix),
        # A negation instead of a copy, which the compiler would optimize away.
        "copy": partial(jax.jit(jnp.negative), numbers),
    }
    pieces = {name: calling(call, settings.on_cpu) for name, call in programs.items()}
    return pieces, 2.0 * side**3, 2.0 * numbers.nbytes


def _limit(settings: Settings, case: Problem | RouterShape) -> Iterator[Row]:
    how = against_copy if isinstance(case, RouterShape) else _against_limit
    yield from how(settings, case)


# Steps of whole networks, and single routers, over their lower bounds.
LIMIT = Part(
    lambda settings: [
        *map(settings.problem, settings.main_networks),
        *large_routers(settings),
    ],
    _limit,
)
