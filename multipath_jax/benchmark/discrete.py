"""Inference without inactive paths (`Gathered`), compared to the soft network."""

import dataclasses
from collections.abc import Iterator
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from multipath_jax.benchmark.rows import Part, Row, at_least
from multipath_jax.benchmark.settings import Problem, Settings
from multipath_jax.benchmark.steps import QUICKLY, make_model
from multipath_jax.benchmark.timing import calling
from multipath_jax.layers import CrossConnect
from multipath_jax.models.complexity import multiply_adds
from multipath_jax.models.gathered import Gathered

CHOICES = (1, 2)
BATCH = 256
TARGET = 1.8  # for k = 1 and this batch size, on CPUs


def _cases(settings: Settings) -> tuple[Problem, ...]:
    networks = settings.choose(("BaseCNN-4-CC",), ("BaseCNN-4-CC", "ResNet20-4-CC"))
    return tuple(
        dataclasses.replace(settings.problem(network), batch=batch)
        for network in networks
        for batch in (max(1, BATCH // settings.batch_divisor), 1)
    )


def _inference(settings: Settings, problem: Problem) -> Iterator[Row]:
    images = jax.random.normal(jax.random.key(1), (problem.batch, *problem.image_shape))
    soft = make_model(problem)
    options = QUICKLY if settings.on_cpu else None
    variables = jax.jit(soft.init, compiler_options=options)(jax.random.key(0), images[:1])
    program = jax.jit(soft.apply).lower(variables, images).compile()
    contestants = {"soft": calling(partial(program, variables, images), settings.on_cpu)}
    products = {"soft": multiply_adds(soft.apply, variables, images)}
    flops = {"soft": (program.cost_analysis() or {}).get("flops")}
    for k in CHOICES:
        settings.check_time()
        model = make_model(problem, k=k)
        network = Gathered(model, balanced(model, variables, images))
        network(images)  # compiles
        name = f"k={k}"
        contestants[name] = calling(partial(network, images), settings.on_cpu)
        products[name], flops[name] = network.work.multiply_adds, network.work.flops
    times = settings.interleave(contestants)
    for k in CHOICES:
        name, held = f"k={k}", settings.on_cpu and k == 1 and problem.batch == BATCH
        figures = {}
        for one in ("soft", name):
            figures[f"{one} images/s"] = 1e3 * problem.batch / times.milliseconds(one)
            figures[f"{one} multiply-adds an image M"] = products[one] / problem.batch / 1e6
            counted = flops[one]
            figures[f"{one} compiled FLOPs an image M"] = (
                None if counted is None else counted / problem.batch / 1e6
            )
        yield Row(
            f"{problem.network} batch {problem.batch}",
            f"images/s with {name} / soft",
            times.ratio("soft", name),
            at_least(TARGET) if held else None,
            figures,
        )


def balanced(model: nn.Module, soft: PyTree, images: Float[Array, "b h w c"]) -> PyTree:
    """Variables of a discrete network with about equal loads, without training.

    With random gates nearly all images take the same route. So the bias of each router is set to
    the negative mean of its scores.

    Args:
      model: the discrete network.
      soft: variables of the soft network.
      images: the images for which loads are equalized, ``[b h w c]``.

    Returns:
      The variables of ``soft`` with the biases.
    """
    shapes = jax.eval_shape(model.init, jax.random.key(0), images[:1])["routing"]
    state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    variables = {**soft, "routing": state}
    watch = jax.jit(partial(model.apply, mutable=["intermediates"]))
    for router in (layer for layer in model.layers if isinstance(layer, CrossConnect)):
        _, found = watch(variables, images)
        recorded = found["intermediates"][router.name]
        active = recorded["chosen"][0].any(-1, keepdims=True)
        total = jnp.sum(jnp.where(active, recorded["relevance"][0], 0), axis=(0, 1))
        variables["routing"][router.name]["chooser"]["bias"] = -total / active.sum()
    return variables


# Images/s and multiply-adds, for k of 1 and 2.
DISCRETE = Part(_cases, _inference)
