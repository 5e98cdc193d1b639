"""Residual blocks that an image may skip, and the gates that decide it.

A decision is one number per image, 1 to run the block and 0 to skip it. It is recorded under
``intermediates`` as ``keep [b]``. The shapes of a compiled program cannot depend on it, so that
the residual is always computed and then multiplied: this shows what is skipped, but saves no time.
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
    """The gate of ConvNet-AIG: Veit and Belongie (2018), Section 3.2.

    Global average pooling, a dense layer, ReLU, and a score each for skipping and running. In
    training Gumbel noise (from the random stream ``gates``) makes the higher score a sample of
    their softmax; backward it is the softmax of the noisy scores. Training also records the loss
    ``target_rate``: how far the share of images that run the block is from ``target``, squared.

    Attributes:
      target: the share of images that ought to run the block.
      weight: of the loss.
      run_all: whether at inference the block runs for every image, weighted by the probability of
        running, as dropout's expectation is; otherwise the higher score decides.
      hidden: width between the dense layers.
    """

    target: float = 0.7
    weight: float = 2.0
    run_all: bool = False
    hidden: int = 16

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b"]:
        check_sizes(self, x.shape, {"hidden": self.hidden})
        he = nn.initializers.he_normal()
        mostly_run = nn.initializers.constant(jnp.array([0.0, 2.0]))  # blocks have yet to learn
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
    """A feed-forward gate of SkipNet: Wang et al. (2018), Section 3.1.

    A probability of running, rounded forward and as it is backward. Theirs begin with strided
    convolutions, which 54 blocks could not have within the printed 1.7M parameters; here global
    average pooling stands in for them.

    Attributes:
      hidden: width between the dense layers.
    """

    hidden: int = 10

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b"]:
        check_sizes(self, x.shape, {"hidden": self.hidden})
        he = nn.initializers.he_normal()
        mostly_run = nn.initializers.constant(2.0)  # blocks have yet to learn
        h = nn.relu(nn.Dense(self.hidden, kernel_init=he, name="dense_1")(global_average_pool(x)))
        probability = jax.nn.sigmoid(nn.Dense(1, bias_init=mostly_run, name="dense_2")(h))[:, 0]
        return straight_through(jnp.round(probability), probability)


class ConditionalBlock(BasicBlock):
    """A residual block that runs for some images only: ``ReLU(keep * residual(x) + shortcut(x))``.

    Attributes:
      gate: makes the module that decides from x; called with its name. Not needed where the caller
        decides.
    """

    gate: Callable[..., nn.Module] | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        train: bool = False,
        keep: Float[Array, "b"] | None = None,
    ) -> Float[Array, "b h2 w2 f"]:
        """``keep``: the decision, where the caller makes it."""
        if keep is None:
            keep = self.gate(name="gate")(x, train)
        self.sow("intermediates", "keep", keep)
        y = self._residual(x, train)
        y = keep.astype(y.dtype)[:, None, None, None] * y
        return nn.relu(y + self._shortcut(x, train).astype(y.dtype))
