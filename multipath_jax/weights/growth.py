"""From X paths to Y: weights of a network with more paths that computes what a trained one does.

Path j of the Y paths is a copy of path j mod X of the source; a single-path network has X = 1 and
no routers. Let k_i be the number of copies of path i, and c the path of which j is a copy.

Scores (Eq. 2) are those of the source, less log k_c for output j, so that the gates (Eq. 3) are
g_ic / k_c. Let every copy of path i have s_i = Y / (X k_i) times the activations of the source. By
Eq. 5, output j is then the sum of k_i s_i g_ic / k_c X_i over i, which is s_c times the source's
output, and the mean over the Y paths at the end is the source's mean over X. The input of the first
router is one tensor, which has to be Y / X times the source's.

Scales are folded into the weights, since ReLU and pooling keep them: a kernel is divided by the
scale of its input, and the BatchNorm behind it is multiplied by the scale of its output. Where Y is
a multiple of X, all s_i are 1, and paths are exact copies except next to the first router.

Unrouted paths (`Share`) see the whole input, so that only the last layer is scaled.
"""

import dataclasses
import re
from collections.abc import Mapping
from functools import cached_property

import flax.linen as nn
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Float, PyTree

from multipath_jax.errors import UserError
from multipath_jax.layers import (
    ConvCrossPredict,
    ConvNorm,
    ConvStage,
    CrossConnect,
    DenseCrossPredict,
    DenseLayer,
    PoolDense,
    ResidualStack,
    ResidualStem,
    Router,
    Share,
)
from multipath_jax.models.multipath import MultiPath
from multipath_jax.weights.convert import compare
from multipath_jax.weights.layouts import Key, Shape

SCALED = (ConvNorm, ConvStage, DenseLayer, PoolDense, ResidualStem, ResidualStack)
UNIT = re.compile(r"|conv|projection|conv_(?P<number>\d+)")  # a kernel with its BatchNorm

Scale = Float[np.ndarray, "..."]  # one number, or one for each path
Value = Array | np.ndarray  # NumPy's arrays are grown by NumPy


def grow(variables: PyTree, fresh: PyTree, model: nn.Module, noise: float = 0.0) -> PyTree:
    """The variables of a network with more paths that computes what another one does.

    Args:
      variables: those of a network of the same layers with fewer paths: one without routers, or
        several with the same kind of routers.
      fresh: the initial variables of ``model``. The gates keep their first layer of it, and a last
        layer of another number of classes stays fresh.
      model: the network with more paths, a `MultiPath`.
      noise: the size of the perturbation that makes the paths differ; 0: none, so that the logits
        are equal up to rounding. To the kernels in paths it adds their fresh values, brought to
        ``noise`` times their deviation; new gates start at ``noise`` times their fresh weights.

    Returns:
      Variables of ``model``.

    Raises:
      UserError: the layers are not the same, or the network cannot grow.
    """
    there, own = traverse_util.flatten_dict(variables), traverse_util.flatten_dict(fresh)
    shapes = {key: value.shape for key, value in own.items()}
    growth = find_growth(model, shapes, {key: value.shape for key, value in there.items()})
    if growth is None:
        raise UserError("variables are not of a network with fewer paths than model")
    found = compare(
        growth.expected,
        {key: "/".join(key) for key in growth.expected},
        {"/".join(key): value.shape for key, value in there.items()},
    )
    found.check("variables", "a network grows from one of the same layers", whole=True)
    arrays = {key: there[key] for key in found.fitting}
    return traverse_util.unflatten_dict(growth.grow(arrays, own, noise))


def find_growth(
    model: nn.Module | None,
    own: Mapping[Key, Shape],
    there: Mapping[Key, Shape],
    source: str = "variables",
) -> "Growth | None":
    """How a network grows from a source of fewer paths.

    Args:
      model: the network.
      own: the shapes of its variables, flattened.
      there: the shapes of the source's arrays; those of a single-path network may have any names.
      source: for errors.

    Returns:
      None if the network has no paths, or the source as many.

    Raises:
      UserError: the source has more paths, or a layer of the network cannot be grown.
    """
    layers = model.layers if isinstance(model, MultiPath) else ()
    routers = [layer for layer in layers if isinstance(layer, Router)]
    last = next((key for key in own if routers and key[:2] == ("params", layers[-1].name)), None)
    if last is None:
        return None
    single = len(there[last]) < len(own[last]) if last in there else not there.keys() & own.keys()
    if not single and last not in there:
        return None
    paths, most = 1 if single else there[last][0], routers[0].num_outputs
    if paths == most and not single:
        return None
    growth = Growth(model, dict(own), paths, single)
    if reason := growth.obstacle:
        raise UserError(f"{source} cannot grow from {counted(paths)} to {most}: {reason}")
    return growth


def counted(paths: int) -> str:
    """``1 path``, ``2 paths``."""
    return f"{paths} path" + "s" * (paths > 1)


@dataclasses.dataclass(frozen=True)
class Growth:
    """How the variables of a network are made of those of one with fewer paths.

    Attributes:
      model: the network.
      own: the shapes of its variables, flattened.
      paths: X, the number of paths of the source.
      single: whether the source's arrays have no axis of paths.
    """

    model: MultiPath
    own: Mapping[Key, Shape]
    paths: int
    single: bool

    @cached_property
    def routers(self) -> list[Router]:
        """The routers of the network."""
        return [layer for layer in self.model.layers if isinstance(layer, Router)]

    @property
    def most(self) -> int:
        """Y, the number of paths of the network."""
        return self.routers[0].num_outputs

    @property
    def copies(self) -> np.ndarray:
        """The path of the source of which each path is a copy, ``[Y]``."""
        return np.arange(self.most) % self.paths

    @property
    def counts(self) -> np.ndarray:
        """The number of copies of the path of which each path is one, ``[Y]``."""
        return np.bincount(self.copies)[self.copies]

    # --- What can grow ----------------------------------------------------------------------------

    @property
    def obstacle(self) -> str:
        """Why the network cannot grow; "" if it can."""
        if self.paths > self.most:
            return "paths can be added, but not removed"
        if any(isinstance(r, CrossConnect) and r.is_discrete for r in self.routers):
            return (
                "discrete routing chooses anew with any change of a gate; grow without the option "
                "k, then start with k from that run"
            )
        predicted = {ConvCrossPredict, DenseCrossPredict}
        kinds = {*map(type, self.routers)}
        alone = kinds == {Share} and len(self.routers) == 1
        if not (kinds == {CrossConnect} or kinds <= predicted or alone):
            names = ", ".join(sorted(kind.__name__ for kind in kinds))
            return f"its routers ({names}) are not all cross-connections, or all cross-predictions"
        if len({router.num_outputs for router in self.routers}) > 1:
            return "its routers have different numbers of outputs"
        stages = [isinstance(layer, ConvStage) for layer in self.model.layers]
        if kinds & predicted and self.single and not any(stages):
            return "its cross-predictions are layers that a single-path network does not have"
        for layer in self.model.layers:
            if layer.name in self._scales and not self._can_scale(layer):
                return f"its layer {layer.name} cannot be scaled"
        return ""

    def _can_scale(self, layer: nn.Module) -> bool:
        before, after = self._scales[layer.name]
        if isinstance(layer, Router) or (np.all(before == 1) and np.all(after == 1)):
            return True
        if isinstance(layer, ResidualStack) and not np.array_equal(before, after):
            return False  # its shortcuts keep the scale
        keys = [key for key in self.own if key[:2] == ("params", layer.name)]
        return isinstance(layer, SCALED) and all(UNIT.fullmatch(_unit(key)) for key in keys)

    # --- Where arrays come from -------------------------------------------------------------------

    @cached_property
    def expected(self) -> dict[Key, Shape]:
        """The shapes of the source's arrays, by their keys there."""
        return {self.origin(key): self._shape_there(key) for key in self.own if self.has(key)}

    def has(self, key: Key) -> bool:
        """Whether the source has an array for this one: without routers, it has no gates."""
        return not (self.single and self._is_gate(key))

    def origin(self, key: Key) -> Key:
        """The key of an array in the source.

        In single-path networks, cross-predictions are the first convolution of each stage and the
        second dense layer (Fig. 2).
        """
        collection, name, *rest = key
        layer = self._layers[name]
        if not self.single or type(self.routers[0]) is not ConvCrossPredict:
            return key
        if isinstance(layer, ConvCrossPredict):
            return collection, name.replace("router", "stage"), "conv_1", *rest[1:]
        if isinstance(layer, DenseCrossPredict):
            return collection, "dense_2", *rest[1:]
        if isinstance(layer, ConvStage):
            number = int(rest[0].removeprefix("conv_")) + 1
            return collection, name, f"conv_{number}", *rest[1:]
        return key

    def _shape_there(self, key: Key) -> Shape:
        shape = [*self.own[key]]
        if self._is_shared(key):
            return tuple(shape)
        if shape[0] == self.most and not self._is_first(key):
            shape[0] = self.paths
        if self._is_over_outputs(key):
            shape[-1] = shape[-1] * self.paths // self.most
        return tuple(shape[self.single :])

    @cached_property
    def _layers(self) -> dict[str, nn.Module]:
        return {layer.name: layer for layer in self.model.layers}

    @cached_property
    def _shared(self) -> frozenset[str]:
        names = [*self._layers]
        return frozenset(names[: names.index(self.routers[0].name)])

    def _is_shared(self, key: Key) -> bool:
        """Whether an array is of a layer before the first router."""
        return key[1] in self._shared

    def _is_first(self, key: Key) -> bool:
        """Whether an array is of the first router, which has one input."""
        return key[1] == self.routers[0].name

    def _is_gate(self, key: Key) -> bool:
        return isinstance(self._layers[key[1]], Router) and key[2] == "gate"

    def _is_over_outputs(self, key: Key) -> bool:
        """Whether the last axis has a part for each output of a router."""
        router = isinstance(self._layers[key[1]], Router)
        return router and (key[2] == "prediction" or key[-1] in ("w2", "b2"))

    # --- Scales -----------------------------------------------------------------------------------

    @cached_property
    def _scales(self) -> dict[str, tuple[Scale, Scale]]:
        """The scales of the input and the output of each layer; of a router, of its predictions."""
        layers, one = self.model.layers, np.ones(())
        more = np.asarray(self.most / self.paths)  # Y / X
        share = more / self.counts  # s_i
        routed, shared, scale, found = not isinstance(self.routers[0], Share), True, one, {}
        for layer, following in zip(layers, (*layers[1:], None), strict=True):
            if isinstance(layer, Router):
                found[layer.name] = (scale, more if shared else share)
                if isinstance(layer, CrossConnect):
                    scale = share * (scale / more if shared else one)
                elif routed:
                    scale = share
                shared = False
                continue
            if shared:
                after = more if isinstance(following, CrossConnect) else one
            else:
                after = share if routed or following is None else one
            found[layer.name] = (scale, after)
            scale = after
        return found

    def _factor(self, key: Key) -> Scale | float:
        """What an array is multiplied by to take up the scales."""
        before, after = self._scales[key[1]]
        if self._is_gate(key):
            return 1 / before if key[-1] == "w1" else 1.0
        if key[0] != "params" or (np.all(before == 1) and np.all(after == 1)):
            return 1.0
        number = int(UNIT.fullmatch(_unit(key))["number"] or 0)
        following = (*key[:-3], f"conv_{number + 1}", "conv", "kernel")
        normed = (*key[:-2], "norm", "scale") in self.own
        reads = key[-1] == "kernel" and number < 2
        writes = (key[-2] == "norm" or not normed) and (not number or following not in self.own)
        return (1 / before if reads else 1.0) * (after if writes else 1.0)

    # --- The arrays -------------------------------------------------------------------------------

    def grow(
        self, arrays: Mapping[Key, Value], fresh: Mapping[Key, Value], noise: float
    ) -> dict[Key, Value]:
        """The variables of the network.

        Args:
          arrays: of the source, by their keys there.
          fresh: the network's initial variables; what ``arrays`` lack stays so.
          noise: as in `grow`.
        """
        grown = dict(fresh)
        for key, value in fresh.items():
            if self.has(key) and self.origin(key) in arrays:
                copied = self._copied(key, arrays[self.origin(key)])
                grown[key] = self._perturbed(key, copied, value, noise).astype(value.dtype)
            elif not self.has(key) and key[-1] in ("w2", "b2"):
                grown[key] = noise * value
        return grown

    def _copied(self, key: Key, array: Value) -> Value:
        if self._is_shared(key):
            return array * self._factor(key)
        array = array[None] if self.single else array
        if not self._is_first(key):
            array = array[self.copies]
        if self._is_over_outputs(key):
            parts = array.reshape(*array.shape[:-1], self.paths, -1)
            array = parts[..., self.copies, :].reshape(*array.shape[:-1], -1)
        if self._is_gate(key) and key[-1] == "b2":
            return array - np.log(self.counts)
        return array * np.reshape(self._factor(key), (-1, *[1] * (array.ndim - 1)))

    def _perturbed(self, key: Key, value: Value, fresh: Value, noise: float) -> Value:
        """The value, with noise if it is a kernel (or a matrix of a gate) in a path."""
        if not noise or self._is_shared(key) or key[0] != "params" or value.ndim < 3:
            return value
        axes = tuple(range(1, value.ndim))
        deviation, of_fresh = (x.std(axis=axes, keepdims=True) for x in (value, fresh))
        tiny = np.finfo(fresh.dtype).tiny  # fresh kernels may be zero
        return value + noise * deviation * (fresh / (of_fresh + tiny))


def _unit(key: Key) -> str:
    """The name of the convolution or dense layer in a layer: "conv_1" of stage_1/conv_1/norm."""
    return key[-3] if len(key) > 4 and key[-3] != "prediction" else ""
