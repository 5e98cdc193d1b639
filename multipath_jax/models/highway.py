"""HighwayNet: the 19-layer convolutional highway network quoted in Table 2."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from multipath_jax.layers import ConvHighway, max_pool_2x2
from multipath_jax.models.family import Family
from multipath_jax.routing import gate_dtype, global_average_pool

# Channels, convolutions, whether a 2x2 max-pooling follows: FitNet 4 of Romero et al. (2015).
STAGES = ((32, 3, False), (48, 2, True), (80, 6, True), (128, 6, False))


class HighwayNet(nn.Module):
    """Srivastava et al., "Training Very Deep Networks" (2015): a highway of FitNet 4's shape.

    17 convolutions, a dense layer and the output layer. The first convolution of each stage changes
    the number of channels; the others are highway layers. It has 2.3M parameters, as printed, and,
    like the original, no normalization.

    Attributes:
      num_classes: width of the output.
      gate_bias: initial bias of the gates T.
      dtype: type of the computation.
    """

    num_classes: int
    gate_bias: float = -2.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w c"], train: bool = False
    ) -> Float[Array, "b classes"]:
        """The logits, ``[b h w c] -> [b classes]``."""
        options = {"kernel_init": nn.initializers.he_normal(), "dtype": self.dtype}
        x = images
        for stage, (channels, convolutions, pool) in enumerate(STAGES, start=1):
            x = nn.relu(nn.Conv(channels, (3, 3), name=f"stage_{stage}_conv_1", **options)(x))
            for number in range(2, convolutions + 1):
                name = f"stage_{stage}_highway_{number}"
                x = ConvHighway(gate_bias=self.gate_bias, dtype=self.dtype, name=name)(x)
            x = max_pool_2x2(x) if pool else x
        x = nn.relu(nn.Dense(500, name="dense_1", **options)(global_average_pool(x)))
        x = nn.Dense(self.num_classes, dtype=self.dtype, name="dense_2")(x)
        return x.astype(gate_dtype(x))


def highway_net(
    num_classes: int, *, gate_bias: float = -2.0, dtype: DTypeLike = jnp.float32
) -> HighwayNet:
    """Builds a `HighwayNet`; the arguments are its attributes."""
    return HighwayNet(num_classes, gate_bias, dtype)


FAMILIES: tuple[Family, ...] = (Family("HighwayNet", highway_net, ("HighwayNet",)),)
