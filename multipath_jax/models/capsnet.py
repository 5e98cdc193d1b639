"""CapsNet: Sabour et al., "Dynamic Routing Between Capsules" (2017), which Table 2 quotes."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from multipath_jax.layers import PrimaryCapsules, RoutedCapsules
from multipath_jax.layers.capsule import length
from multipath_jax.models.family import Family


def margin_loss(lengths: Float[Array, "b classes"], labels: Int[Array, "b"]) -> Float[Array, " b"]:
    """Their Eq. 4: the right class longer than 0.9, every other one shorter than 0.1."""
    right = jax.nn.one_hot(labels, lengths.shape[-1], dtype=lengths.dtype)
    present = jax.nn.relu(0.9 - lengths) ** 2
    absent = jax.nn.relu(lengths - 0.1) ** 2
    return jnp.sum(right * present + 0.5 * (1 - right) * absent, axis=-1)


class CapsNet(nn.Module):
    """Two layers of capsules behind a convolution, and a decoder that draws the image again.

    The printed 8.2M parameters are those of the MNIST network: images of 28x28x1, ten classes.
    Other images of at least 17x17 pixels do as well; more pixels mean more primary capsules. The
    logits are the lengths of the class capsules: their order is that of the classes, but they are
    no logarithms of probabilities.

    Its `loss` is the margin loss and that of the decoder. The decoder's last layer is linear, where
    theirs was a sigmoid: they drew grey values between 0 and 1, and our images are normalized.

    Attributes:
      num_classes: class capsules.
      iterations: of the routing by agreement.
      reconstruction: weight of the decoder's sum of squared errors.
      dtype: of the convolutions; capsules and decoder are float32.
    """

    num_classes: int
    iterations: int = 3
    reconstruction: float = 0.0005
    dtype: DTypeLike = jnp.float32

    def __call__(
        self, images: Float[Array, "b h w c"], train: bool = False
    ) -> Float[Array, "b classes"]:
        """Images -> the lengths of the class capsules."""
        return self._lengths_and_images(images)[0]

    def loss(
        self, images: Float[Array, "b h w c"], labels: Int[Array, " b"], train: bool = True
    ) -> tuple[Float[Array, "b classes"], Float[Array, " b"]]:
        """The lengths, and the margin loss plus the weighted error of the images drawn again.

        The decoder draws from the capsule of the right class.
        """
        lengths, drawn = self._lengths_and_images(images, labels)
        error = jnp.sum((drawn - images) ** 2, axis=(1, 2, 3))
        return lengths, margin_loss(lengths, labels) + self.reconstruction * error

    @nn.compact
    def _lengths_and_images(self, images, labels=None) -> tuple[Array, Array]:
        """The lengths, and the images as the capsules of these or the longest classes have it."""
        x = nn.Conv(256, (9, 9), padding="VALID", dtype=self.dtype, name="conv")(images)
        capsules = PrimaryCapsules(dtype=self.dtype, name="primary")(nn.relu(x))
        capsules = RoutedCapsules(self.num_classes, iterations=self.iterations, name="classes")(
            capsules
        )
        lengths = length(capsules)
        shown = jnp.argmax(lengths, axis=-1) if labels is None else labels
        return lengths, self._decode(capsules, shown, images.shape)

    def _decode(self, capsules, classes, shape) -> Float[Array, "b h w c"]:
        """The image as one class's capsule describes it; recorded under ``intermediates``."""
        mask = jax.nn.one_hot(classes, self.num_classes, dtype=capsules.dtype)
        x = (capsules * mask[..., None]).reshape(capsules.shape[0], -1)
        for number, features in enumerate((512, 1024), start=1):
            init = nn.initializers.he_normal()
            x = nn.relu(nn.Dense(features, kernel_init=init, name=f"decoder_{number}")(x))
        drawn = nn.Dense(math.prod(shape[1:]), name="decoder_3")(x).reshape(shape)
        self.sow("intermediates", "reconstruction", drawn)
        return drawn


def capsnet(
    num_classes: int,
    *,
    iterations: int = 3,
    reconstruction: float = 0.0005,
    dtype: DTypeLike = jnp.float32,
) -> CapsNet:
    """CapsNet, with its options.

    Args:
      num_classes: class capsules.
      iterations: of the routing by agreement.
      reconstruction: weight of the decoder's sum of squared errors.
      dtype: of the convolutions.
    """
    return CapsNet(num_classes, iterations, reconstruction, dtype)


FAMILIES: tuple[Family, ...] = (
    Family(
        "CapsNet",
        capsnet,
        ("CapsNet",),
        image_shape=(28, 28, 1),
        note="the size is the MNIST network's; the quoted error is an ensemble's on CIFAR-10",
    ),
)
