"""The networks as a Flax user would write them first, as a baseline.

``nn.vmap`` for paths and gates, an einsum for the mixture, autodiff for gradients. It does not use
this package.
"""

import re

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float


def over_paths(module: type[nn.Module]) -> type[nn.Module]:
    """Lifts a module over paths, with separate parameters and statistics."""
    return nn.vmap(
        module,
        variable_axes={"params": 0, "batch_stats": 0},
        split_rngs={"params": True},
        in_axes=(0, None),
    )


class Gate(nn.Module):
    """Eqs. 1-3 for one tensor."""

    outputs: int

    @nn.compact
    def __call__(self, x: Float[Array, "b *space c"], _: None) -> Float[Array, "b n"]:
        z = x.mean(tuple(range(1, x.ndim - 1))).astype(jnp.float32)
        z = nn.relu(nn.Dense(16)(z))
        return nn.softmax(nn.Dense(self.outputs)(z))


class CrossConnect(nn.Module):
    """Algorithm 2."""

    outputs: int

    @nn.compact
    def __call__(self, xs: Float[Array, "m b *space c"]) -> Float[Array, "n b *space c"]:
        gates = over_paths(Gate)(self.outputs)(xs, None)
        return jnp.einsum("mbn,mb...->nb...", gates.astype(xs.dtype), xs)


class ConvStage(nn.Module):
    """Two 3x3 convolutions with BatchNorm and ReLU, and an optional 2x2 max-pooling."""

    features: int
    pool: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h2 w2 f"]:
        for _ in range(2):
            x = nn.Conv(self.features, (3, 3), dtype=self.dtype)(x)
            x = nn.relu(nn.BatchNorm(not train, momentum=0.9, dtype=self.dtype)(x))
        return nn.max_pool(x, (2, 2), (2, 2)) if self.pool else x


class Dense(nn.Module):
    """A dense layer on the flattened input; hidden layers have BatchNorm and ReLU."""

    features: int
    relu: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b *rest"], train: bool) -> Float[Array, "b f"]:
        x = nn.Dense(self.features, dtype=self.dtype)(x.reshape(len(x), -1))
        if not self.relu:
            return x
        return nn.relu(nn.BatchNorm(not train, momentum=0.9, dtype=self.dtype)(x))


class BaseCNN(nn.Module):
    """BaseCNN-X-CC (Table 1, Fig. 4)."""

    paths: int
    num_classes: int
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w c"], train: bool = False
    ) -> Float[Array, "b classes"]:
        xs = images[None]
        for features, pool in ((32, True), (64, True), (128, False)):
            xs = CrossConnect(self.paths)(xs)
            xs = over_paths(ConvStage)(features, pool, self.dtype)(xs, train)
        for features in (32, 32):
            xs = CrossConnect(self.paths)(xs)
            xs = over_paths(Dense)(features, True, self.dtype)(xs, train)
        xs = over_paths(Dense)(self.num_classes, False, self.dtype)(xs, train)
        return xs.mean(0)


class ResidualStack(nn.Module):
    """A sequence of basic blocks, the first of which may be strided."""

    features: int
    blocks: int
    stride: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h2 w2 f"]:
        def conv_norm(x, kernel, stride):
            padding = kernel // 2
            conv = nn.Conv(
                self.features, (kernel, kernel), stride, padding, use_bias=False, dtype=self.dtype
            )
            return nn.BatchNorm(not train, momentum=0.9, dtype=self.dtype)(conv(x))

        for number in range(self.blocks):
            stride = self.stride if number == 0 else 1
            y = nn.relu(conv_norm(x, 3, stride))
            y = conv_norm(y, 3, 1)
            if x.shape != y.shape:
                x = conv_norm(x, 1, stride)
            x = nn.relu(y + x)
        return x


class ResNet(nn.Module):
    """ResNet{6k+2}-X-CC for CIFAR, or ResNet18-X-CC for ImageNet."""

    depth: int
    paths: int
    num_classes: int
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w c"], train: bool = False
    ) -> Float[Array, "b classes"]:
        imagenet = self.depth == 18
        widths = (64, 128, 256, 512) if imagenet else (16, 32, 64)
        blocks = 2 if imagenet else (self.depth - 2) // 6
        kernel, stride, padding = (7, 2, 3) if imagenet else (3, 1, 1)
        x = nn.Conv(widths[0], (kernel, kernel), stride, padding, use_bias=False, dtype=self.dtype)(
            images
        )
        x = nn.relu(nn.BatchNorm(not train, momentum=0.9, dtype=self.dtype)(x))
        if imagenet:
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        xs = CrossConnect(self.paths)(x[None])
        for number, features in enumerate(widths):
            stride = 1 if number == 0 else 2
            xs = over_paths(ResidualStack)(features, blocks, stride, self.dtype)(xs, train)
            xs = CrossConnect(self.paths)(xs)
        return over_paths(Dense)(self.num_classes, False, self.dtype)(xs.mean((2, 3)), train).mean(
            0
        )


def create(name: str, num_classes: int, dtype: DTypeLike) -> nn.Module:
    """Creates ``BaseCNN-X-CC``, ``ResNet18-X-CC`` or ``ResNet{6k+2}-X-CC``; else ValueError."""
    if match := re.fullmatch(r"BaseCNN-(\d+)-CC", name):
        return BaseCNN(int(match[1]), num_classes, dtype)
    if match := re.fullmatch(r"ResNet(\d+)-(\d+)-CC", name):
        return ResNet(int(match[1]), int(match[2]), num_classes, dtype)
    raise ValueError(f"the nn.vmap peer has no {name}")
