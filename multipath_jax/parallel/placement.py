"""Path parallelism: the sharding of a network's variables, and its application under shard_map.

With ``mesh.path=P`` the stacked parameters of parallel paths are sharded over P groups of devices.
Each group computes its own paths; only the routers communicate (see `layers.sharding`).
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from multipath_jax.errors import UserError
from multipath_jax.layers import CrossConnect, Router, sharding
from multipath_jax.models.multipath import MultiPath
from multipath_jax.parallel.devices import DATA, PATH


def check(
    model: nn.Module, name: str, path: int, image_shape: tuple[int, int, int] = (32, 32, 3)
) -> None:
    """Raises UserError for a network whose paths cannot be sharded over ``path`` devices.

    Args:
      model: the network.
      name: name of the network, for the message.
      path: size of the mesh's path axis.
      image_shape: height, width and channels of its images.
    """
    if path == 1:
        return
    routers = _routers(model)
    # The input of the first router is replicated, so it needs no sum over devices.
    if not routers or not all(router.additive for router in routers[1:]):
        raise UserError(
            f"mesh.path={path}: {name} has no paths that can be sharded (parallel paths connected "
            "only by additive routers); use mesh.path=1"
        )
    for paths in {router.num_outputs for router in routers}:
        if paths % path:
            raise UserError(
                f"mesh.path={path}: the {paths} paths of {name} cannot be divided over {path} "
                f"devices; use a divisor of {paths}"
            )
    _check_choices(routers, f"mesh.path={path}: {name}")
    _check_batch(model, f"mesh.path={path}: {name}", image_shape)


def _check_choices(routers: list[Router], what: str) -> None:
    """Raises UserError for options of discrete routers that sharded paths do not support."""
    choices = [r.choice for r in routers if isinstance(r, CrossConnect) and r.is_discrete]
    if any(choice.estimator == "gumbel" for choice in choices):
        raise UserError(
            f"{what} uses estimator=gumbel, which needs noise on every device; use "
            "estimator=straight_through, or mesh.path=1"
        )
    if any(choice.load_entropy or choice.gate_entropy for choice in choices):
        raise UserError(
            f"{what} uses load_entropy or gate_entropy, which are not summed over devices; use "
            "bias_rate, or mesh.path=1"
        )


def _check_batch(model: nn.Module, what: str, image_shape: tuple[int, int, int]) -> None:
    """Raises UserError for layers whose result depends on a device's part of the batch."""
    local = []

    def watch(call, args, kwargs, context):
        layer = context.module
        if isinstance(layer, nn.BatchNorm) and layer.axis_name != DATA:
            frozen = layer.use_running_average or kwargs.get("use_running_average")
            local.extend([] if frozen else ["/".join(layer.path)])
        return call(*args, **kwargs)

    def trace(key, image):
        with sharding.over_devices(DATA, None), nn.intercept_methods(watch):
            return model.init(key, image, train=True)

    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = jax.eval_shape(trace, jax.random.key(0), image)
    if local:
        raise UserError(
            f"{what} has a BatchNorm over a part of the batch only, {local[0]}; use "
            "multipath_jax.layers.batch_norm for it, or mesh.path=1"
        )
    if "losses" in variables:
        raise UserError(
            f"{what} sows auxiliary losses, which are not summed over devices; use mesh.path=1"
        )


def _routers(model: nn.Module) -> list[Router]:
    layers = model.layers if isinstance(model, MultiPath) else ()
    return [layer for layer in layers if isinstance(layer, Router)]


def _varying(x: Array) -> Array:
    """Casts an array to vary over both mesh axes, without changing its values."""
    missing = {DATA, PATH} - jax.typeof(x).manual_axis_type.varying
    return lax.pcast(x, tuple(missing), to="varying")


def _replicated_over_paths(x: Array, spec: PartitionSpec) -> Array:
    """Marks a value as replicated over the path axis, by a mean over equal values."""
    same = PATH not in spec and PATH in jax.typeof(x).manual_axis_type.varying
    if same and x.dtype == jnp.bool:
        return lax.pmax(x.astype(jnp.int32), PATH) > 0
    return lax.pmean(x, PATH) if same else x


@runtime_checkable
class Network(Protocol):
    """A network that can be applied: a Flax module, or a `Placement` of one."""

    def apply(self, variables: PyTree, *args: Any, **kwargs: Any) -> Any: ...


def has_own_loss(model: Network) -> bool:
    """Whether a network has a method ``loss(images, labels, train) -> (outputs, losses [b])``."""
    return model.has_own_loss if isinstance(model, Placement) else hasattr(model, "loss")


class Placement:
    """A network on a mesh, with the sharding of its variables.

    Attributes:
      has_own_loss: whether the network defines its own loss, by a method `loss`.
      apply: ``model.apply``; if paths are sharded, under `jax.shard_map`.
    """

    def __init__(self, model: nn.Module, mesh: Mesh):
        self._model, self._mesh = model, mesh
        self.has_own_loss = has_own_loss(model)
        split = mesh.shape[PATH] > 1
        names = [layer.name for layer in model.layers] if split else []
        # The first router has one input and one gate, which are replicated.
        first = names.index(_routers(model)[0].name) if split else 0
        self._opening, self._stacked = names[first : first + 1], frozenset(names[first + 1 :])
        self.apply: Callable[..., Any] = self._apply if split else model.apply

    def sharding(self, tree: PyTree) -> PyTree:
        """The shardings of the leaves of a tree, such as variables or an optimizer state.

        Leaves under the name of a layer in parallel paths are sharded along their leading axis.
        """
        return jax.tree_util.tree_map_with_path(
            lambda path, _: NamedSharding(self._mesh, self._spec(path)), tree
        )

    def _spec(self, path: tuple) -> PartitionSpec:
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        names = names[1:] if names[:1] in (["params"], ["batch_stats"]) else names
        return PartitionSpec(PATH) if names and names[0] in self._stacked else PartitionSpec()

    def _apply(self, variables: PyTree, images: PyTree, *, rngs: Any = None, **options) -> Any:
        """As ``model.apply``; ``rngs`` is ignored, since such networks have no random layers."""
        del rngs

        def local(variables, images):
            # Casting replicated parameters and images here determines the backward pass: gradients
            # of parameters are summed over devices once, in the parameters' type, and gradients of
            # the feature maps before the paths are not summed.
            params = jax.tree.map(_varying, variables["params"])
            with sharding.over_devices(DATA, PATH):
                found = self._model.apply(
                    {**variables, "params": params}, _varying(images), **options
                )
            return jax.tree.map(_replicated_over_paths, found, outputs)

        whole = jax.eval_shape(lambda v, x: self._model.apply(v, x, **options), variables, images)
        outputs = jax.tree_util.tree_map_with_path(self._output_spec, whole)
        inputs = jax.tree_util.tree_map_with_path(lambda path, _: self._spec(path), variables)
        return jax.shard_map(
            local,
            mesh=self._mesh,
            in_specs=(inputs, PartitionSpec(DATA)),
            out_specs=outputs,
        )(variables, images)

    def _output_spec(self, path: tuple, _) -> PartitionSpec:
        """The spec of an output: logits ``[b classes]``, statistics, or the records of routers."""
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        if not names:
            return PartitionSpec(DATA)
        if names[0] != "intermediates":
            return self._spec(path)
        whole = names[1] in self._opening and names[-1] != "output_strength"
        return PartitionSpec(None if whole else PATH, DATA)
