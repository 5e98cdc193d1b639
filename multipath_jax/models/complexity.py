"""Parameters, multiply-adds and depth of a network, computed from its jaxpr."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend import core


@dataclasses.dataclass(frozen=True)
class Complexity:
    """The size of one network.

    Attributes:
      params: number of trainable parameters.
      multiply_adds: number of multiply-adds in convolutions, dense layers and other matrix
        products, for one image. Sums and element-wise products, such as in a router's mixture, are
        not counted, as usual.
      depth: number of layers with weights on the longest path from the image to the logits. Side
        branches that only scale (gates, squeeze-and-excitation) are not counted, as in the paper.
      routers: number of routing layers that sow ``gates``.
    """

    params: int
    multiply_adds: int
    depth: int
    routers: int


def complexity(model: nn.Module, image_shape: tuple[int, int, int]) -> Complexity:
    """Computes the complexity of a network by tracing it; nothing is executed or allocated.

    Args:
      model: the network.
      image_shape: height, width and channels.

    Returns:
      The complexity for one image.
    """
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    init = functools.partial(model.init, train=False, mutable=True)  # also records the gates
    variables = dict(jax.eval_shape(init, jax.random.key(0), image))
    recorded = variables.pop("intermediates", {})

    def infer(variables, image):
        return model.apply(variables, image, train=False)

    program = jax.make_jaxpr(infer)(variables, image)
    inputs = [None] * len(jax.tree.leaves(variables)) + [0]
    multiply_adds, (depth,) = _walk(program.jaxpr, inputs)
    return Complexity(
        params=sum(leaf.size for leaf in jax.tree.leaves(variables["params"])),
        multiply_adds=multiply_adds,
        depth=depth,
        routers=sum(
            path[-2].key == "gates" for path, _ in jax.tree_util.tree_leaves_with_path(recorded)
        ),
    )


def multiply_adds(function: Callable[..., Any], *arguments: Any) -> int:
    """The multiply-adds of a function of arrays, counted as in `complexity`; nothing is computed.

    Args:
      function: the function.
      *arguments: its arguments, as arrays or shapes.

    Returns:
      The number of multiply-adds.
    """
    program = jax.make_jaxpr(function)(*arguments)
    return _walk(program.jaxpr, [0] * len(program.jaxpr.invars))[0]


def _walk(jaxpr: core.Jaxpr, inputs: list[int | None]) -> tuple[int, list[int | None]]:
    """Multiply-adds of a jaxpr, and the depths of its outputs, from the depths of its inputs.

    The depth is None for values that do not depend on the image.
    """
    depths = dict(zip(jaxpr.invars, inputs, strict=True))
    total = 0

    def depth_of(atom):
        return None if isinstance(atom, core.Literal) else depths.get(atom)

    for eqn in _used(jaxpr):
        multiply_adds, outputs = _equation(eqn, [depth_of(atom) for atom in eqn.invars])
        total += multiply_adds
        depths.update(zip(eqn.outvars, outputs, strict=True))
    return total, [depth_of(atom) for atom in jaxpr.outvars]


def _used(jaxpr: core.Jaxpr) -> list[core.JaxprEqn]:
    """The equations on which the outputs depend: without those of unused intermediates."""
    needed = {atom for atom in jaxpr.outvars if not isinstance(atom, core.Literal)}
    used = []
    for eqn in reversed(jaxpr.eqns):
        if needed.intersection(eqn.outvars):
            needed.update(atom for atom in eqn.invars if not isinstance(atom, core.Literal))
            used.append(eqn)
    return used[::-1]


def _equation(eqn: core.JaxprEqn, inputs: list[int | None]) -> tuple[int, list[int | None]]:
    reached = [depth for depth in inputs if depth is not None]
    if not reached:
        return 0, [None] * len(eqn.outvars)
    if eqn.primitive.name in ("conv_general_dilated", "dot_general"):
        return products(eqn), [max(reached) + 1]
    bodies = list(core.jaxprs_in_params(eqn.params))
    if bodies:
        # The last jaxpr is the body of a call or a loop (a loop's condition comes first); a scan
        # repeats it.
        body = bodies[-1]
        multiply_adds, outputs = _walk(body, inputs[len(inputs) - len(body.invars) :])
        return multiply_adds * eqn.params.get("length", 1), outputs
    if eqn.primitive.name == "concatenate":
        return 0, [max(reached)]
    # A value that is broadcast to a larger tensor only scales or shifts it: a side branch.
    largest = max(atom.aval.size for atom in eqn.invars)
    main = [d for d, atom in zip(inputs, eqn.invars, strict=True) if atom.aval.size == largest]
    broadcast = largest < eqn.outvars[0].aval.size and eqn.primitive.name == "broadcast_in_dim"
    depth = 0 if broadcast else max((d for d in main if d is not None), default=0)
    return 0, [depth] * len(eqn.outvars)


def products(eqn: core.JaxprEqn) -> int:
    """The multiply-adds of a convolution or a matrix product."""
    left, right = (atom.aval.shape for atom in eqn.invars)
    outputs = eqn.outvars[0].aval.size
    if eqn.primitive.name == "dot_general":
        contracted, _ = eqn.params["dimension_numbers"]
        return outputs * math.prod(left[axis] for axis in contracted[0])
    features = right[eqn.params["dimension_numbers"].rhs_spec[0]]
    return outputs * math.prod(right) // features
