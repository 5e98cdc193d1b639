"""Residual blocks that are executed conditionally for each image, and their gates.

A decision is one number per image: 1 to execute the block, 0 to skip it. It is sown into
``intermediates`` as ``keep [b]``. Shapes in a compiled program are static, so the residual is
always computed and then multiplied by the decision: no time is saved.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from multipath_jax.layers.paths import check_sizes
from multipath_jax.layers.residual import BasicBlock
from multipath_jax.routing import global_average_pool, straight_through


class GumbelGate(nn.Module):
    """The gate of ConvNet-AIG (Veit and Belongie, 2018, Section 3.2): ``[b h w c] -> [b]``.

    Global average pooling, a dense layer, ReLU, and a dense layer with one score for skipping and
    one for executing the block. Training adds Gumbel noise (from the random stream ``gates``) and
    uses the straight-through estimator with the softmax of the noisy scores. Training also sows the
    loss ``target_rate``: the squared difference between ``target`` and the fraction of images that
    execute the block.

    Attributes:
      target: the desired fraction of images that execute the block.
      weight: weight of the loss.
      run_all: whether inference executes the block for every image, weighted by the probability of
        executing it; otherwise the higher score decides.
      hidden: width of the hidden layer.
    """

    target: float = 0.7
    weight: float = 2.0
    run_all: bool = False
    hidden: int = 16

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b"]:
        check_sizes(self, x.shape, {"hidden": self.hidden})
        he = nn.initializers.he_normal()
        mostly_run = nn.initializers.constant(jnp.array([0.0, 2.0]))  # at first, execute blocks
        h = nn.relu(nn.Dense(self.hidden, kernel_init=he, name="dense_1")(global_average_pool(x)))
        scores = nn.Dense(2, bias_init=mostly_run, name="dense_2")(h)
        if train:
            scores += jax.random.gumbel(self.make_rng("gates"), scores.shape, scores.dtype)
        probability = jax.nn.softmax(scores)[:, 1]
        if self.run_all and not train:
            return probability
        hard = (scores[:, 1] >= scores[:, 0]).astype(scores.dtype)
        keep = straight_through(hard, probability)
        if train:
            self.sow("losses", "target_rate", self.weight * (keep.mean() - self.target) ** 2)
        return keep


class SkipGate(nn.Module):
    """A feed-forward gate of SkipNet (Wang et al., 2018, Section 3.1): ``[b h w c] -> [b]``.

    The probability of executing the block, rounded, with the straight-through estimator. The
    original gates have strided convolutions, which for 54 blocks exceed the 1.7M parameters that
    the paper prints; here global average pooling replaces them.

    Attributes:
      hidden: width of the hidden layer.
    """

    hidden: int = 10

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b"]:
        check_sizes(self, x.shape, {"hidden": self.hidden})
        he = nn.initializers.he_normal()
        mostly_run = nn.initializers.constant(2.0)  # at first, execute blocks
        h = nn.relu(nn.Dense(self.hidden, kernel_init=he, name="dense_1")(global_average_pool(x)))
        probability = jax.nn.sigmoid(nn.Dense(1, bias_init=mostly_run, name="dense_2")(h))[:, 0]
        return straight_through(jnp.round(probability), probability)


class ConditionalBlock(BasicBlock):
    """A residual block with a decision per image: ``ReLU(keep * residual(x) + shortcut(x))``.

    Attributes:
      gate: a factory of the gate module, called with ``name=``; not needed if the caller passes
        ``keep``.
    """

    gate: Callable[..., nn.Module] | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        train: bool = False,
        keep: Float[Array, "b"] | None = None,
    ) -> Float[Array, "b h2 w2 f"]:
        """Runs the block: ``[b h w c] -> [b h/strides w/strides features]``.

        Args:
          x: ``[b h w c]``.
          train: whether to use the batch's statistics and sample the decision.
          keep: the decision for each image, ``[b]``; None: the gate decides.
        """
        if keep is None:
            keep = self.gate(name="gate")(x, train)
        self.sow("intermediates", "keep", keep)
        y = self._residual(x, train)
        y = keep.astype(y.dtype)[:, None, None, None] * y
        return nn.relu(y + self._shortcut(x, train).astype(y.dtype))
