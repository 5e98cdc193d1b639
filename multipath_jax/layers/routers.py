"""Routing layers: the functions of `multipath_jax.routing` with parameters of their own.

Every router takes m parallel tensors ``[m b ... c]`` (or a sequence of m) and gives n. It records
under Flax's ``intermediates``: ``gates [m b n]``, ``relevance [m b n]`` (the scores before the
softmax), and ``input_strength [m b]`` and ``output_strength [n b]``, the mean activation of every
tensor that enters and leaves (Section 7.1). What nobody asks for is never computed.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from multipath_jax import routing
from multipath_jax.layers import spread
from multipath_jax.layers.blocks import ConvNorm, DenseLayer
from multipath_jax.layers.paths import Execution, Parallel, check_sizes, stack_paths

Tensors = Sequence[Array] | Float[Array, "..."]


class Gate(nn.Module):
    """Eqs. 1-2 for m parallel tensors: the parameters of their gates and their relevance scores.

    Attributes:
      num_outputs: n, the number of output paths.
      hidden: d, the width between the two dense layers; 16 fits every parameter count of the paper.
    """

    num_outputs: int
    hidden: int = 16

    @nn.compact
    def __call__(
        self, xs: Float[Array, "m b *space c"]
    ) -> tuple[routing.GateParams, Float[Array, "m b n"]]:
        m, c, d, n = len(xs), xs.shape[-1], self.hidden, self.num_outputs
        check_sizes(self, xs.shape[1:], {"num_outputs": n, "hidden": d}, m)
        he = nn.initializers.he_normal(batch_axis=0)  # before a ReLU
        lecun = nn.initializers.lecun_normal(batch_axis=0)
        zeros = nn.initializers.zeros
        params = routing.GateParams(
            self.param("w1", he, (m, c, d), jnp.float32),
            self.param("b1", zeros, (m, d), jnp.float32),
            self.param("w2", lecun, (m, d, n), jnp.float32),
            self.param("b2", zeros, (m, n), jnp.float32),
        )
        zs = jnp.stack([routing.global_average_pool(x) for x in jnp.unstack(xs)])
        return params, jax.vmap(routing.relevance)(zs, params)


class Router(nn.Module):
    """What routers share: n, the gate's width, the check of shapes and the records.

    Attributes:
      num_outputs: n, the number of output paths.
      hidden: d, the hidden width of every gate.
    """

    num_outputs: int
    hidden: int = 16

    def _enter(self, xs: Tensors) -> Float[Array, "m b *rest"]:
        """The inputs, stacked.

        Raises:
          ValueError: n or another width < 1, or tensors of unequal shapes or without channels or
            pixels; names the layer and the shapes.
        """
        xs = stack_paths(self, xs)
        widths = ("num_outputs", "hidden", "features")
        sizes = {name: getattr(self, name) for name in widths if hasattr(self, name)}
        check_sizes(self, xs.shape[1:], sizes, len(xs))
        return xs

    def _gate(self, xs) -> tuple[routing.GateParams | None, Float[Array, "m b n"]]:
        """The gates' parameters and, recorded, Eqs. 1-3.

        There are no parameters where `nn.intercept_methods` gives `Gate` scores from elsewhere.
        """
        params, relevance = Gate(self.num_outputs, self.hidden, name="gate")(xs)
        gates = jax.nn.softmax(relevance)
        self.sow("intermediates", "relevance", relevance)
        self.sow("intermediates", "gates", gates)
        return params, gates

    def _leave(self, xs, ys):
        """Records the strengths of Section 7.1 and gives the outputs."""
        for name, tensors in (("input_strength", xs), ("output_strength", ys)):
            strength = jnp.mean(tensors, axis=tuple(range(2, tensors.ndim)), dtype=jnp.float32)
            self.sow("intermediates", name, strength)
        return ys


class CrossConnect(Router):
    """Section 4: ``Y_j = sum_i g_ij X_i`` with gates computed from the inputs (Algorithm 2).

    Attributes:
      custom_vjp: the backward pass of Section 5, written out; False leaves it to autodiff, with
        the same result.
    """

    custom_vjp: bool = True

    @nn.compact
    def __call__(self, xs: Tensors, train: bool = False) -> Float[Array, "n b *space c"]:
        """m tensors ``[b ... c]`` -> ``[n b ... c]``.

        Raises:
          ValueError: tensors of unequal shapes or without channels, or n < 1.
        """
        xs = self._enter(xs)
        params, gates = self._gate(xs)
        if self.custom_vjp and params is not None:
            ys = routing.gated_cross_connect(xs, params)
        else:
            ys = routing.cross_connect(xs, gates)
        return self._leave(xs, spread.deliver(ys))


class OneToMany(CrossConnect):
    """The one-to-many connector: a cross-connection from one tensor (m = 1) to n."""

    def __call__(self, x: Float[Array, "b *space c"], train: bool = False) -> Array:
        """``[b ... c] -> [n b ... c]``."""
        return super().__call__(x[None])


class Share(Router):
    """No routing: one tensor, or the mean of several, given to all n paths alike (BaseCNN-X)."""

    def __call__(self, xs: Tensors, train: bool = False) -> Float[Array, "n b *rest"]:
        """m tensors ``[b ...]`` -> ``[n b ...]``. Raises ValueError as `CrossConnect` does."""
        x = self._enter(xs).mean(0)
        return spread.deliver(jnp.broadcast_to(x, (self.num_outputs, *x.shape)))


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

    @nn.compact
    def __call__(self, xs: Tensors, train: bool = False) -> Float[Array, "n b *space f"]:
        """m tensors ``[b ... c]`` -> ``[n b ... features]``.

        Raises:
          ValueError: tensors of unequal shapes or of the wrong rank, or n < 1.
        """
        xs = self._enter(xs)
        predictor = self.predictor(self.num_outputs * self.features)
        us = Parallel(predictor, self.execution)(xs, train=train)
        us = [jnp.split(u, self.num_outputs, axis=-1) for u in jnp.unstack(us)]
        _, gates = self._gate(xs)
        sums = spread.deliver(jnp.stack(routing.mix_predictions(us, gates)))
        return self._leave(xs, nn.relu(sums))


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
            name="prediction",
        )


class DenseCrossPredict(_CrossPredict):
    """Cross-prediction by dense layers."""

    def predictor(self, features: int) -> nn.Module:
        """The dense layer that makes one input's predictions."""
        return DenseLayer(features, False, self.dtype, norm=True, name="prediction")
