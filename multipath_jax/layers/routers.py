"""Routing layers: the functions of `multipath_jax.routing` with parameters of their own.

Every router takes m parallel tensors ``[m b ... c]`` (or a sequence of m) and gives n. It records
under Flax's ``intermediates``: ``gates [m b n]``, ``relevance [m b n]`` (the scores before the
softmax), and ``input_strength [m b]`` and ``output_strength [n b]``, the mean activation of every
tensor that enters and leaves (Section 7.1). Records that are not collected are eliminated as dead
code.
"""

from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from multipath_jax import routing
from multipath_jax.layers import spread
from multipath_jax.layers.activity import ActivePaths
from multipath_jax.layers.blocks import ConvNorm, DenseLayer
from multipath_jax.layers.choice import Choice, Chooser
from multipath_jax.layers.paths import Execution, Parallel, check_sizes, stack_paths

Tensors = Sequence[Array] | Float[Array, "..."] | ActivePaths


class Gate(nn.Module):
    """Eqs. 1-2 for m parallel tensors: the weights of their gates and their relevance scores.

    Attributes:
      num_outputs: n, the number of output paths.
      hidden: d, the width between the two dense layers; 16 fits every parameter count of the paper.
    """

    num_outputs: int
    hidden: int = 16

    @nn.compact
    def weights(self, xs: Float[Array, "m b *space c"]) -> routing.GateParams:
        """The parameters of m gates. Raises ValueError for a width below one."""
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
        """The scores A of Eq. 2. Raises ValueError as `weights` does."""
        zs = jnp.stack([routing.global_average_pool(x) for x in jnp.unstack(xs)])
        return jax.vmap(routing.relevance)(zs, self.weights(xs))


class Router(nn.Module):
    """The base of all routers: m parallel tensors in, n out.

    A router of one's own is a subclass with a `mix`, for outputs computed from the inputs and the
    paper's gates, with `gates`, for gates computed in another way, or with a `route`, for something
    else altogether. It takes its place in a `MultiPath` as those of this package do; the figures
    and the ablation know what `gates` records::

        class Strongest(Router):
            additive = True

            def mix(self, xs, gates, train=False):
                strongest = jax.nn.one_hot(gates.argmax(-1), self.num_outputs)
                return routing.cross_connect(xs, strongest)

    Attributes:
      num_outputs: n, the number of output paths.
      hidden: d, the hidden width of every gate.
      additive: of the class; whether `route` gives sums over the inputs, each term computed from
        one input alone. Such a router works on paths that are spread over devices
        (``mesh.path``), which add up their terms among themselves.
    """

    num_outputs: int
    hidden: int = 16

    additive: ClassVar[bool] = False

    def setup(self):
        self.gate = Gate(self.num_outputs, self.hidden)

    def __call__(self, xs: Tensors, train: bool = False) -> Float[Array, "n b *rest"]:
        """m tensors ``[b ...]`` -> ``[n b ...]``; records the strengths of Section 7.1.

        Args:
          xs: m tensors, stacked or as a sequence.
          train: as every layer takes it.

        Raises:
          ValueError: n or another width < 1, or tensors of unequal shapes or without channels or
            pixels, or `ActivePaths`, which `CrossConnect` alone takes; names the layer and the
            shapes.
        """
        xs = self._checked(xs)
        ys = self.activation(spread.deliver(self.route(xs, train)))
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
        """The outputs before their activation: `mix` by the `gates` of these inputs."""
        return self.mix(xs, self.gates(xs), train)

    def gates(self, xs: Float[Array, "m b *space c"]) -> Float[Array, "m b n"]:
        """Eqs. 1-3, recorded."""
        relevance = self.gate(xs)
        return self.record(relevance, jax.nn.softmax(relevance))

    def mix(
        self, xs: Float[Array, "m b *rest"], gates: Float[Array, "m b n"], train: bool
    ) -> Float[Array, "n b *rest2"]:
        """The outputs by given gates; here Eq. 5."""
        return routing.cross_connect(xs, gates)

    def activation(self, ys: Float[Array, "n b *rest"]) -> Float[Array, "n b *rest"]:
        """What is applied to the outputs of `route`, whose terms have been added up."""
        return ys

    def record(
        self, relevance: Float[Array, "m b n"], gates: Float[Array, "m b n"]
    ) -> Float[Array, "m b n"]:
        """Records what a router decided by; gives the gates."""
        self.sow("intermediates", "relevance", relevance)
        self.sow("intermediates", "gates", gates)
        return gates


class CrossConnect(Router):
    """Section 4: ``Y_j = sum_i g_ij X_i`` with gates computed from the inputs (Algorithm 2).

    With ``k`` it is discrete: every input goes to the k outputs that suit it best (D1-D4 of
    `routing`), and what comes out are `ActivePaths`, which `Parallel` and the next router take. It
    records which outputs were ``chosen [m b n]`` too. With k = n it is the paper's layer.

    Attributes:
      custom_vjp: the backward pass of Section 5, written out; False leaves it to autodiff, with
        the same result, and has a forward mode (`jax.jvp`). Of a soft router alone.
      k: the outputs that every active input chooses; None: all.
      choice: how it chooses, and how it learns to.
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
        """Whether inputs choose among the outputs."""
        return self.k is not None and self.k != self.num_outputs

    def __call__(self, xs: Tensors, train: bool = False) -> Float[Array, "n b *rest"] | ActivePaths:
        """As of every router; but `ActivePaths` from a discrete one, or from `ActivePaths`."""
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
        ys = spread.deliver(routing.cross_connect(xs, gates))
        self._record_strengths(xs, ys)
        return ActivePaths(ys, spread.deliver_any(routing.active_outputs(chosen, active)))

    def route(self, xs: Float[Array, "m b *rest"], train: bool) -> Float[Array, "n b *rest"]:
        """The outputs, and their gates recorded, by one function with one backward pass."""
        if not self.custom_vjp:
            return super().route(xs, train)
        ys, relevance, gates = routing.route(xs, self.gate.weights(xs))
        self.record(relevance, gates)
        return ys


class OneToMany(CrossConnect):
    """The one-to-many connector: a cross-connection from one tensor (m = 1) to n."""

    def __call__(self, x: Float[Array, "b *space c"], train: bool = False) -> Array | ActivePaths:
        """``[b ... c] -> [n b ... c]``. Raises ValueError as `Router` does."""
        return super().__call__(x[None], train)


class Share(Router):
    """No routing: one tensor, or the mean of several, given to all n paths alike (BaseCNN-X)."""

    def route(self, xs: Float[Array, "m b *rest"], train: bool) -> Float[Array, "n b *rest"]:
        """The mean of the inputs, n times."""
        x = xs.mean(0)
        return jnp.broadcast_to(x, (self.num_outputs, *x.shape))


class _CrossPredict(Router):
    """Section 3: ``Y_j = ReLU(sum_i g_ij U_ij)``, U_ij a prediction of output j by input i.

    One layer per input, made by ``predictor``, makes that input's predictions of all n outputs at
    once (Algorithm 1): it computes n times the features, which are then split.

    Attributes:
      features: of every output tensor.
      execution: how the m prediction layers run, as in `Parallel`.
      dtype: of the computation.
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
        """The sums of Eq. 4 over the predictions that every input makes."""
        us = jnp.unstack(self.prediction(xs, train=train))
        us = [jnp.split(u, self.num_outputs, axis=-1) for u in us]
        return jnp.stack(routing.mix_predictions(us, gates))

    def activation(self, ys: Float[Array, "n b *rest"]) -> Float[Array, "n b *rest"]:
        """The ReLU of Eq. 4."""
        return nn.relu(ys)


class ConvCrossPredict(_CrossPredict):
    """Cross-prediction by convolutions, each normalized as all of the network's are.

    The BatchNorm belongs to the prediction: it folds into W_ij and b_ij, so Eq. 4 holds as it is.

    Attributes:
      kernel: side of the convolution.
      strides: of the convolution.
      use_bias: whether the convolution has one beside its BatchNorm.
    """

    kernel: int = 3
    strides: int = 1
    use_bias: bool = True

    def predictor(self, features: int) -> nn.Module:
        """The convolution that makes one input's predictions."""
        return ConvNorm(
            features,
            self.kernel,
            self.strides,
            use_bias=self.use_bias,
            relu=False,
            dtype=self.dtype,
        )


class DenseCrossPredict(_CrossPredict):
    """Cross-prediction by dense layers."""

    def predictor(self, features: int) -> nn.Module:
        """The dense layer that makes one input's predictions."""
        return DenseLayer(features, False, self.dtype, norm=True)
