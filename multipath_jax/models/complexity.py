"""What a network costs: parameters, multiply-adds and depth, read from its program unexecuted."""

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
      params: number of trained parameters.
      multiply_adds: of all convolutions, dense layers and other products for one image; sums and
        element-wise products, such as a router's mixture, are not counted, as is customary.
      depth: layers with weights on the longest way from the image to the logits. Side branches
        that only scale (gates, squeeze-and-excitation) are not layers of it, as in the paper.
      routers: number of routing layers, by what they record.
    """

    params: int
    multiply_adds: int
    depth: int
    routers: int


def complexity(model: nn.Module, image_shape: tuple[int, int, int]) -> Complexity:
    """Measures a network for images ``[h w c]``; nothing is computed or allocated."""
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)
    variables = {key: tree for key, tree in variables.items() if key != "intermediates"}

    def infer(variables, image):
        return model.apply(variables, image, train=False)

    record = functools.partial(model.apply, train=False, mutable=["intermediates"])
    _, recorded = jax.eval_shape(record, variables, image)
    program = jax.make_jaxpr(infer)(variables, image)
    inputs = [None] * len(jax.tree.leaves(variables)) + [0]
    multiply_adds, (depth,) = _walk(program.jaxpr, inputs)
    return Complexity(
        params=sum(leaf.size for leaf in jax.tree.leaves(variables["params"])),
        multiply_adds=multiply_adds,
        depth=depth,
        routers=sum(
            path[-2].key == "gates"
            for path, _ in jax.tree_util.tree_leaves_with_path(recorded.get("intermediates", {}))
        ),
    )


def multiply_adds(function: Callable[..., Any], *arguments: Any) -> int:
    """Those of a function of arrays, counted as in `complexity`; nothing is computed."""
    program = jax.make_jaxpr(function)(*arguments)
    return _walk(program.jaxpr, [0] * len(program.jaxpr.invars))[0]


def _walk(jaxpr: core.Jaxpr, inputs: list[int | None]) -> tuple[int, list[int | None]]:
    """Multiply-adds, and the depth of every output.

    Depths are None for what does not depend on the image: the parameters, and what is made of
    them alone.
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
    """The equations that the outputs need; what routers would record is not computed."""
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
        # The arguments of a call are those of its body; a loop's condition comes first and has
        # fewer. Repeated, a body does its work as often.
        body = bodies[-1]
        multiply_adds, outputs = _walk(body, inputs[len(inputs) - len(body.invars) :])
        return multiply_adds * eqn.params.get("length", 1), outputs
    if eqn.primitive.name == "concatenate":
        return 0, [max(reached)]
    # What is spread over a larger tensor only scales or shifts it: a side branch.
    largest = max(atom.aval.size for atom in eqn.invars)
    main = [d for d, atom in zip(inputs, eqn.invars, strict=True) if atom.aval.size == largest]
    spread = largest < eqn.outvars[0].aval.size and eqn.primitive.name == "broadcast_in_dim"
    depth = 0 if spread else max((d for d in main if d is not None), default=0)
    return 0, [depth] * len(eqn.outvars)


def products(eqn: core.JaxprEqn) -> int:
    """Multiply-adds of a convolution or a matrix product."""
    left, right = (atom.aval.shape for atom in eqn.invars)
    outputs = eqn.outvars[0].aval.size
    if eqn.primitive.name == "dot_general":
        contracted, _ = eqn.params["dimension_numbers"]
        return outputs * math.prod(left[axis] for axis in contracted[0])
    features = right[eqn.params["dimension_numbers"].rhs_spec[0]]
    return outputs * math.prod(right) // features
