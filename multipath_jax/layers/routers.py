"""Routing layers: the functions of `multipath_jax.routing` as Flax modules with parameters.

Every router maps m parallel tensors ``[m b ... c]`` (or a sequence of m) to n. It sows into the
collection ``intermediates``: ``gates [m b n]``, ``relevance [m b n]`` (the scores before the
softmax), and ``input_strength [m b]`` and ``output_strength [n b]``, the mean activations of the
inputs and outputs (Section 7.1). Unused intermediates are eliminated as dead code.
"""

from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from multipath_jax import routing
from multipath_jax.layers import sharding
from multipath_jax.layers.activity import ActivePaths
from multipath_jax.layers.blocks import ConvNorm, DenseLayer
from multipath_jax.layers.choice import Choice, Chooser
from multipath_jax.layers.paths import Execution, Parallel, check_sizes, stack_paths

Tensors = Sequence[Array] | Float[Array, "..."] | ActivePaths


class Gate(nn.Module):
    """Eqs. 1-2 for m parallel tensors: relevance scores by two dense layers.

    Attributes:
      num_outputs: n, the number of output paths.
      hidden: d, the width of the hidden layer; 16 matches every parameter count of the paper.
    """

    num_outputs: int
    hidden: int = 16

    @nn.compact
    def weights(self, xs: Float[Array, "m b *space c"]) -> routing.GateParams:
        """The parameters of the m gates. Raises ValueError if a width is below 1."""
        m, c, d, n = len(xs), xs.shape[-1], self.hidden, self.num_outputs
        check_sizes(self, xs.shape[1:], {"num_outputs": n, "hidden": d}, m)
        he = nn.initializers.he_normal(batch_axis=0)  # before a ReLU
        lecun = nn.initializers.lecun_normal(batch_axis=0)
        zeros = nn.initializers.zeros
        return routing.GateParams(
            self.param("w1", he, (m, c, d), jnp.float32),
            self.param("b1", zeros, (m, d), jnp.float32),
            self.param("w2", lecun, (m, d, n), jnp.float32),
            self.param("b2", zeros, (m, n), jnp.float32),
        )

    def __call__(self, xs: Float[Array, "m b *space c"]) -> Float[Array, "m b n"]:
        """The relevance scores A (Eq. 2), ``[m b ... c] -> [m b n]``. Raises as `weights`."""
        zs = jnp.stack([routing.global_average_pool(x) for x in jnp.unstack(xs)])
        return jax.vmap(routing.relevance)(zs, self.weights(xs))


class Router(nn.Module):
    """The base class of routers, which map m parallel tensors to n.

    A custom router is a subclass that overrides `mix` (how outputs are computed from the inputs and
    the paper's gates), `gates` (how gates are computed), or `route` (both). It can be a layer of a
    `MultiPath`; the figures and the ablation use what `record` sows::

        class Strongest(Router):
            additive = True

            def mix(self, xs, gates, train=False):
                strongest = jax.nn.one_hot(gates.argmax(-1), self.num_outputs)
                return routing.cross_connect(xs, strongest)

    Attributes:
      num_outputs: n, the number of output paths.
      hidden: d, the width of the hidden layer of every gate.
      additive: class attribute; whether the outputs of `route` are sums over the inputs, with each
        term computed from one input only. Such a router supports paths that are sharded over
        devices (``mesh.path``): the terms are summed over devices.
    """

    num_outputs: int
    hidden: int = 16

    additive: ClassVar[bool] = False

    def setup(self):
        self.gate = Gate(self.num_outputs, self.hidden)

    def __call__(self, xs: Tensors, train: bool = False) -> Float[Array, "n b *rest"]:
        """Routes the inputs, and sows the strengths of inputs and outputs (Section 7.1).

        Args:
          xs: m tensors ``[b ...]``, stacked or as a sequence.
          train: whether layers in the router, such as BatchNorm, run in training mode.

        Returns:
          The outputs, ``[n b ...]``.

        Raises:
          ValueError: n or another width is below 1, or the tensors have different shapes or no
            channels or pixels, or are `ActivePaths`, which only `CrossConnect` supports.
        """
        xs = self._checked(xs)
        ys = self.activation(sharding.scatter_outputs(self.route(xs, train)))
        self._record_strengths(xs, ys)
        return ys

    def _checked(self, xs: Tensors) -> Float[Array, "m b *rest"]:
        xs = stack_paths(self, xs)
        widths = ("num_outputs", "hidden", "features")
        sizes = {name: getattr(self, name) for name in widths if hasattr(self, name)}
        check_sizes(self, xs.shape[1:], sizes, len(xs))
        return xs

    def _record_strengths(self, xs, ys) -> None:
        for name, tensors in (("input_strength", xs), ("output_strength", ys)):
            strength = jnp.mean(tensors, axis=tuple(range(2, tensors.ndim)), dtype=jnp.float32)
            self.sow("intermediates", name, strength)

    def route(self, xs: Float[Array, "m b *rest"], train: bool) -> Float[Array, "n b *rest2"]:
        """The outputs before `activation`, ``[m b ...] -> [n b ...]``; default: `mix`, `gates`."""
        return self.mix(xs, self.gates(xs), train)

    def gates(self, xs: Float[Array, "m b *space c"]) -> Float[Array, "m b n"]:
        """The gates of the inputs, by default Eqs. 1-3; must call `record`."""
        relevance = self.gate(xs)
        return self.record(relevance, jax.nn.softmax(relevance))

    def mix(
        self, xs: Float[Array, "m b *rest"], gates: Float[Array, "m b n"], train: bool
    ) -> Float[Array, "n b *rest2"]:
        """The outputs for given gates, by default Eq. 5.

        Args:
          xs: the inputs, ``[m b ...]``.
          gates: ``[m b n]``.
          train: as in `__call__`.

        Returns:
          The outputs before `activation`, ``[n b ...]``.
        """
        return routing.cross_connect(xs, gates)

    def activation(self, ys: Float[Array, "n b *rest"]) -> Float[Array, "n b *rest"]:
        """Applied to the outputs of `route` after the sum over devices; default: the identity."""
        return ys

    def record(
        self, relevance: Float[Array, "m b n"], gates: Float[Array, "m b n"]
    ) -> Float[Array, "m b n"]:
        """Sows ``relevance`` and ``gates`` into ``intermediates`` and returns the gates."""
        self.sow("intermediates", "relevance", relevance)
        self.sow("intermediates", "gates", gates)
        return gates


class CrossConnect(Router):
    """Cross-connection (Section 4, Algorithm 2): ``Y_j = sum_i g_ij X_i``.

    ``[m b ... c] -> [n b ... c]``; the gates ``g_ij`` are computed from the inputs by Eqs. 1-3.

    With ``k`` below n the router is discrete: every input chooses k outputs (D1-D4 of `routing`).
    Its outputs are `ActivePaths`, which `Parallel` and `CrossConnect` support, and it also sows
    ``chosen [m b n]``. With k = n it is the paper's layer.

    Attributes:
      custom_vjp: whether a soft router uses the backward pass of Section 5 (a ``jax.custom_vjp``).
        False uses autodiff, with the same result; it also supports forward mode (`jax.jvp`).
      k: the number of outputs that every active input chooses; None: soft routing to all outputs.
      choice: the options of discrete routing.
    """

    custom_vjp: bool = True
    k: int | None = None
    choice: Choice = Choice()

    additive: ClassVar[bool] = True

    def setup(self):
        super().setup()
        if self.is_discrete:
            self.chooser = Chooser(self.k, self.choice)

    @property
    def is_discrete(self) -> bool:
        """Whether every input chooses a part of the outputs."""
        return self.k is not None and self.k != self.num_outputs

    def __call__(self, xs: Tensors, train: bool = False) -> Float[Array, "n b *rest"] | ActivePaths:
        """Routes the inputs, as `Router` does.

        Args:
          xs: m tensors ``[b ...]``, stacked, as a sequence, or as `ActivePaths`.
          train: as in `Router`; a discrete router then also updates its state.

        Returns:
          The outputs, ``[n b ...]``; `ActivePaths` if the router is discrete or the inputs are.

        Raises:
          ValueError: as `Router`, or k is not between 1 and n.
        """
        if isinstance(xs, ActivePaths):
            return self._connect_active(self._checked(xs.tensors), xs.active, train)
        if self.is_discrete:
            xs = self._checked(xs)
            return self._connect_active(xs, jnp.ones(xs.shape[:2], bool), train)
        return super().__call__(xs, train)

    def _connect_active(self, xs, active, train) -> ActivePaths:
        relevance = self.gate(xs)
        if self.is_discrete:
            gates, chosen = self.chooser(relevance, active, train)
        else:
            gates = routing.of_active(jax.nn.softmax(relevance), active)
            chosen = jnp.broadcast_to(jnp.expand_dims(active, -1), gates.shape)
        self.record(relevance, gates)
        self.sow("intermediates", "chosen", chosen)
        ys = sharding.scatter_outputs(routing.cross_connect(xs, gates))
        self._record_strengths(xs, ys)
        active = sharding.scatter_any(routing.active_outputs(chosen, active))
        return ActivePaths(ys, active)

    def route(self, xs: Float[Array, "m b *rest"], train: bool) -> Float[Array, "n b *rest"]:
        """The outputs and gates by one call of `routing.route`, with one backward pass."""
        if not self.custom_vjp:
            return super().route(xs, train)
        ys, relevance, gates = routing.route(xs, self.gate.weights(xs))
        self.record(relevance, gates)
        return ys


class OneToMany(CrossConnect):
    """The one-to-many connector (Section 4): a cross-connection from one tensor (m = 1) to n."""

    def __call__(self, x: Float[Array, "b *space c"], train: bool = False) -> Array | ActivePaths:
        """Routes one tensor, ``[b ... c] -> [n b ... c]``. Raises ValueError as `Router` does."""
        return super().__call__(x[None], train)


class Share(Router):
    """No routing: every output is the mean of the inputs, ``[m b ...] -> [n b ...]`` (BaseCNN-X).

    Used with one input, it gives the same tensor to all n paths.
    """

    def route(self, xs: Float[Array, "m b *rest"], train: bool) -> Float[Array, "n b *rest"]:
        """The mean of the inputs, broadcast to n outputs."""
        x = xs.mean(0)
        return jnp.broadcast_to(x, (self.num_outputs, *x.shape))


class _CrossPredict(Router):
    """Cross-prediction (Section 3): ``Y_j = ReLU(sum_i g_ij U_ij)``.

    ``U_ij`` is the prediction of output j from input i. One layer per input, made by ``predictor``,
    computes the predictions of all n outputs at once (Algorithm 1): it has n times the features,
    which are then split.

    Attributes:
      features: number of channels of every output.
      execution: how the m prediction layers run, as in `Parallel`.
      dtype: type of the computation.
    """

    features: int = 32
    execution: Execution = "unrolled"
    dtype: DTypeLike = jnp.float32

    additive: ClassVar[bool] = True

    def setup(self):
        super().setup()
        predictor = self.predictor(self.num_outputs * self.features)
        self.prediction = Parallel(predictor, self.execution)

    def mix(
        self, xs: Float[Array, "m b *space c"], gates: Float[Array, "m b n"], train: bool
    ) -> Float[Array, "n b *space2 f"]:
        """The sums of Eq. 4, before the ReLU, ``[m b ... c] -> [n b ... features]``."""
        us = jnp.unstack(self.prediction(xs, train=train))
        us = [jnp.split(u, self.num_outputs, axis=-1) for u in us]
        return jnp.stack(routing.mix_predictions(us, gates))

    def activation(self, ys: Float[Array, "n b *rest"]) -> Float[Array, "n b *rest"]:
        """The ReLU of Eq. 4."""
        return nn.relu(ys)


class ConvCrossPredict(_CrossPredict):
    """Cross-prediction (Section 3) by convolutions with BatchNorm.

    ``[m b h w c] -> [n b h/strides w/strides features]``. The BatchNorm can be folded into W_ij and
    b_ij, so Eq. 4 holds.

    Attributes:
      kernel: height and width of the kernel.
      strides: stride of the convolution.
      use_bias: whether the convolution has a bias in addition to its BatchNorm.
    """

    kernel: int = 3
    strides: int = 1
    use_bias: bool = True

    def predictor(self, features: int) -> nn.Module:
        """The convolution that computes the predictions of one input."""
        return ConvNorm(
            features,
            self.kernel,
            self.strides,
            use_bias=self.use_bias,
            relu=False,
            dtype=self.dtype,
        )


class DenseCrossPredict(_CrossPredict):
    """Cross-prediction (Section 3) by dense layers, ``[m b ...] -> [n b features]``."""

    def predictor(self, features: int) -> nn.Module:
        """The dense layer that computes the predictions of one input."""
        return DenseLayer(features, False, self.dtype, norm=True)
