"""Table 3's networks that skip residual blocks depending on the image; all are ResNet110."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from multipath_jax.layers import (
    BasicBlock,
    ConditionalBlock,
    GumbelGate,
    PoolDense,
    ResidualStack,
    ResidualStem,
    SkipGate,
    straight_through,
)
from multipath_jax.models.cifar_resnet import STACKS, STEM, cifar_resnet
from multipath_jax.models.family import Family
from multipath_jax.models.multipath import MultiPath
from multipath_jax.routing import gate_dtype


def convnet_aig(
    num_classes: int,
    *,
    run_all: bool,
    depth: int = 110,
    target: float = 0.7,
    dtype: DTypeLike = jnp.float32,
) -> MultiPath:
    """ConvNet-AIG (Veit and Belongie, 2018): a `GumbelGate` in every block of a ResNet.

    ConvNet-AIG-all is the same network, trained in the same way, that executes all blocks at
    inference.

    Args:
      num_classes: width of the output.
      run_all: as in `layers.GumbelGate`.
      depth: 6k+2.
      target: the desired fraction of images that execute a block.
      dtype: type of the computation; gates are float32.
    """
    network = cifar_resnet(num_classes, depth=depth, dtype=dtype)
    blocks = sum(layer.blocks for layer in network.layers if isinstance(layer, ResidualStack))
    # Summed over the blocks, the loss is twice its mean.
    return _gated(network, partial(GumbelGate, target, weight=2 / blocks, run_all=run_all))


def skipnet(num_classes: int, *, depth: int = 110, dtype: DTypeLike = jnp.float32) -> MultiPath:
    """SkipNet (Wang et al., 2018) with feed-forward gates, trained by its supervised first stage.

    The second stage, reinforcement learning that rewards skipping, is not implemented.

    Args:
      num_classes: width of the output.
      depth: 6k+2.
      dtype: type of the computation; gates are float32.
    """
    return _gated(cifar_resnet(num_classes, depth=depth, dtype=dtype), SkipGate)


def _gated(network: MultiPath, gate) -> MultiPath:
    """Adds a gate to every block of a residual network."""

    def gated(stack: ResidualStack) -> ResidualStack:
        block = partial(
            ConditionalBlock, *stack.block.args, **stack.block.keywords | {"gate": gate}
        )
        return stack.clone(block=block)

    return MultiPath(tuple(gated(x) if isinstance(x, ResidualStack) else x for x in network.layers))


class BlockDrop(nn.Module):
    """BlockDrop (Wu et al., 2018): a policy network decides from the image which blocks to execute.

    Two of its three training stages are possible. With ``controlled=0`` every block is executed and
    the residual network is trained; the curriculum then raises ``controlled``, so that the policy
    decides about more and more blocks, from the last to the first. The original trains the policy
    by reinforcement learning; here, the sampled decisions (random stream ``gates``) use the
    straight-through estimator, and the loss ``usage`` is the part of the original reward for
    executing few blocks: the squared fraction of executed blocks. The third stage, joint
    fine-tuning by reinforcement learning, is not implemented.

    The policy network is a ResNet8 of half the width: a full one would exceed the printed 1.7M.

    Attributes:
      num_classes: width of the output.
      policy: a network that maps images to one score per block.
      blocks: number of blocks per stack.
      controlled: number of blocks, counted from the last, that the policy controls; None: all.
      usage: weight of the loss.
      dtype: type of the computation.
    """

    num_classes: int
    policy: nn.Module
    blocks: int = 18
    controlled: int | None = None
    usage: float = 1.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w c"], train: bool = False
    ) -> Float[Array, "b classes"]:
        """Images -> logits."""
        keep = iter(self._decide(images, train).T)
        x = ResidualStem(STEM, dtype=self.dtype, name="stem")(images, train)
        for stack, features in enumerate(STACKS, start=1):
            for number in range(1, self.blocks + 1):
                strides = 2 if stack > 1 and number == 1 else 1
                name = f"stack_{stack}_block_{number}"
                block = ConditionalBlock(features, strides, dtype=self.dtype, name=name)
                x = block(x, train, next(keep))
        x = PoolDense(self.num_classes, self.dtype, name="dense")(x)
        return x.astype(gate_dtype(x))

    def _decide(self, images, train) -> Float[Array, "b blocks"]:
        """The decisions, sampled in training; 1 for blocks that the policy does not control."""
        probabilities = jax.nn.sigmoid(self.policy(images, train))
        blocks = probabilities.shape[1]
        hard = jnp.round(probabilities)
        if train:
            sample = jax.random.bernoulli(self.make_rng("gates"), probabilities)
            hard = sample.astype(probabilities.dtype)
        controlled = blocks if self.controlled is None else self.controlled
        keep = straight_through(hard, probabilities)
        keep = jnp.where(jnp.arange(blocks) >= blocks - controlled, keep, 1.0)
        if train:
            self.sow("losses", "usage", self.usage * (keep.mean(axis=1) ** 2).mean())
        return keep


def policy_network(num_blocks: int, dtype: DTypeLike) -> MultiPath:
    """The policy network of `BlockDrop`: a ResNet8 with 8, 16 and 32 channels.

    Args:
      num_blocks: number of scores, one per block.
      dtype: type of the computation.
    """
    stacks = (
        ResidualStack(
            partial(BasicBlock, features // 2, dtype=dtype), 1, strides, name=f"stack_{number}"
        )
        for number, (features, strides) in enumerate(zip(STACKS, (1, 2, 2), strict=True), start=1)
    )
    return MultiPath(
        (
            ResidualStem(STEM // 2, dtype=dtype, name="stem"),
            *stacks,
            PoolDense(num_blocks, dtype, name="dense"),
        )
    )


def blockdrop(
    num_classes: int,
    *,
    blocks: int = 18,
    controlled: int | None = None,
    usage: float = 1.0,
    dtype: DTypeLike = jnp.float32,
) -> BlockDrop:
    """Builds a `BlockDrop`; the arguments are its attributes. With 18 blocks it is a ResNet110."""
    policy = policy_network(len(STACKS) * blocks, dtype)
    return BlockDrop(num_classes, policy, blocks, controlled, usage, dtype)


FAMILIES: tuple[Family, ...] = (
    Family("ConvNet-AIG", partial(convnet_aig, run_all=False), ("ConvNet-AIG",)),
    Family("ConvNet-AIG-all", partial(convnet_aig, run_all=True), ("ConvNet-AIG-all",)),
    Family("SkipNet", skipnet, ("SkipNet",), note="without its reinforcement learning"),
    Family("BlockDrop", blockdrop, ("BlockDrop",), note="without its reinforcement learning"),
)
