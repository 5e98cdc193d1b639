"""Path parallelism: where a network's variables lie on the mesh, and how it is applied there.

With ``mesh.path=P`` the stacked parameters of parallel paths are split over P groups of devices.
Each computes its own paths; only the routers exchange anything (see `layers.spread`).
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
from multipath_jax.layers import CrossConnect, Router, spread
from multipath_jax.models.multipath import MultiPath
from multipath_jax.parallel.devices import DATA, PATH


def check(
    model: nn.Module, name: str, path: int, image_shape: tuple[int, int, int] = (32, 32, 3)
) -> None:
    """Raises UserError for a network whose paths cannot be spread over ``path`` devices.

    Args:
      model: the network.
      name: of it, for the message.
      path: groups of devices.
      image_shape: of the images that it takes.
    """
    if path == 1:
        return
    routers = _routers(model)
    # The first router sees one tensor, which all devices have: they need not add anything up.
    if not routers or not all(router.additive for router in routers[1:]):
        raise UserError(
            f"mesh.path={path}: {name} has no parallel paths that only routers connect; "
            "use mesh.path=1"
        )
    for paths in {router.num_outputs for router in routers}:
        if paths % path:
            raise UserError(
                f"mesh.path={path}: the {paths} paths of {name} do not divide among {path} "
                "devices; use a divisor of their number"
            )
    _check_choices(routers, f"mesh.path={path}: {name}")
    _check_batch(model, f"mesh.path={path}: {name}", image_shape)


def _check_choices(routers: list[Router], what: str) -> None:
    """Raises UserError for discrete routers that need what is not there over several devices."""
    choices = [r.choice for r in routers if isinstance(r, CrossConnect) and r.is_discrete]
    if any(choice.estimator == "gumbel" for choice in choices):
        raise UserError(
            f"{what} samples by Gumbel noise, which devices with other paths do not share; use "
            "estimator=straight_through, or mesh.path=1"
        )
    if any(choice.load_entropy or choice.gate_entropy for choice in choices):
        raise UserError(
            f"{what} has entropy terms, which are not summed over devices; use bias_rate, or "
            "mesh.path=1"
        )


def _check_batch(model: nn.Module, what: str, image_shape: tuple[int, int, int]) -> None:
    """Raises UserError where a layer would take a device's part of the batch for all of it."""
    blind = []

    def watch(call, args, kwargs, context):
        layer = context.module
        if isinstance(layer, nn.BatchNorm) and layer.axis_name != DATA:
            frozen = layer.use_running_average or kwargs.get("use_running_average")
            blind.extend([] if frozen else ["/".join(layer.path)])
        return call(*args, **kwargs)

    def trace(key, image):
        with spread.over_devices(DATA, None), nn.intercept_methods(watch):
            return model.init(key, image, train=True)

    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = jax.eval_shape(trace, jax.random.key(0), image)
    if blind:
        raise UserError(
            f"{what} has a BatchNorm that does not see the whole batch, {blind[0]}; make it by "
            "multipath_jax.layers.batch_norm, or use mesh.path=1"
        )
    if "losses" in variables:
        raise UserError(f"{what} records losses of its own, which are not summed; use mesh.path=1")


def _routers(model: nn.Module) -> list[Router]:
    layers = model.layers if isinstance(model, MultiPath) else ()
    return [layer for layer in layers if isinstance(layer, Router)]


def _varying(x: Array) -> Array:
    """The same numbers, as if they were others on every device."""
    missing = {DATA, PATH} - jax.typeof(x).manual_axis_type.varying
    return lax.pcast(x, tuple(missing), to="varying")


def _agreed(x: Array, spec: PartitionSpec) -> Array:
    """What is the same on all devices of a group, known to be the same."""
    same = PATH not in spec and PATH in jax.typeof(x).manual_axis_type.varying
    if same and x.dtype == jnp.bool:
        return lax.pmax(x.astype(jnp.int32), PATH) > 0
    return lax.pmean(x, PATH) if same else x


@runtime_checkable
class Network(Protocol):
    """What is trained: a Flax module, or a `Placement` of one."""

    def apply(self, variables: PyTree, *args: Any, **kwargs: Any) -> Any: ...


def has_own_loss(model: Network) -> bool:
    """Whether it has a method ``loss(images, labels, train) -> (outputs, losses [b])``."""
    return model.has_own_loss if isinstance(model, Placement) else hasattr(model, "loss")


class Placement:
    """A network on a mesh.

    Attributes:
      has_own_loss: whether its examples' losses come from a method `loss` of its own.
      apply: ``model.apply``, each device computing its own paths where the mesh has a path axis.
    """

    def __init__(self, model: nn.Module, mesh: Mesh):
        self._model, self._mesh = model, mesh
        self.has_own_loss = has_own_loss(model)
        split = mesh.shape[PATH] > 1
        names = [layer.name for layer in model.layers] if split else []
        # The opening router sees one tensor, so its gate is one, on all devices.
        first = names.index(_routers(model)[0].name) if split else 0
        self._opening, self._stacked = names[first : first + 1], frozenset(names[first + 1 :])
        self.apply: Callable[..., Any] = self._apply if split else model.apply

    def sharding(self, tree: PyTree) -> PyTree:
        """Of every leaf of a tree of variables, of an optimizer's state or of anything else.

        What lies under the name of a layer in the paths has a leading axis of paths.
        """
        return jax.tree_util.tree_map_with_path(
            lambda path, _: NamedSharding(self._mesh, self._spec(path)), tree
        )

    def _spec(self, path: tuple) -> PartitionSpec:
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        names = names[1:] if names[:1] in (["params"], ["batch_stats"]) else names
        return PartitionSpec(PATH) if names and names[0] in self._stacked else PartitionSpec()

    def _apply(self, variables: PyTree, images: PyTree, *, rngs: Any = None, **options) -> Any:
        """As ``model.apply``; no network that can be spread has a use for random streams."""
        del rngs

        def local(variables, images):
            # Cast here, what all devices have of parameters is summed once, backward, in the type
            # of the parameters; and what comes before the paths costs no sum of feature maps.
            params = jax.tree.map(_varying, variables["params"])
            with spread.over_devices(DATA, PATH):
                found = self._model.apply(
                    {**variables, "params": params}, _varying(images), **options
                )
            return jax.tree.map(_agreed, found, outputs)

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
        """Of logits ``[b classes]``, of statistics, or of what routers record."""
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        if not names:
            return PartitionSpec(DATA)
        if names[0] != "intermediates":
            return self._spec(path)
        whole = names[1] in self._opening and names[-1] != "output_strength"
        return PartitionSpec(None if whole else PATH, DATA)
