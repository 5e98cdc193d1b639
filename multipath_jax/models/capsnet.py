"""CapsNet: Sabour et al., "Dynamic Routing Between Capsules" (2017), quoted in Table 2."""

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
    """The margin loss of Sabour et al. (2017), Eq. 4, summed over the classes.

    Args:
      lengths: lengths of the class capsules, ``[b classes]``.
      labels: ``[b]``.

    Returns:
      The loss of each example, ``[b]``.
    """
    right = jax.nn.one_hot(labels, lengths.shape[-1], dtype=lengths.dtype)
    present = jax.nn.relu(0.9 - lengths) ** 2
    absent = jax.nn.relu(lengths - 0.1) ** 2
    return jnp.sum(right * present + 0.5 * (1 - right) * absent, axis=-1)


class CapsNet(nn.Module):
    """A convolution, two capsule layers, and a decoder that reconstructs the image.

    The 8.2M parameters that the paper prints are those of the MNIST network, for images of 28x28x1
    and ten classes. Any images of at least 17x17 pixels are possible; more pixels make more primary
    capsules. The "logits" are the lengths of the class capsules, which are not log-probabilities.

    Its `loss` is the margin loss plus the reconstruction error. The last layer of the decoder is
    linear, where the original has a sigmoid: its images were in [0, 1], these are normalized.

    Attributes:
      num_classes: number of class capsules.
      iterations: number of iterations of the routing by agreement.
      reconstruction: weight of the decoder's sum of squared errors.
      dtype: type of the convolutions; capsules and decoder are float32.
    """

    num_classes: int
    iterations: int = 3
    reconstruction: float = 0.0005
    dtype: DTypeLike = jnp.float32

    def __call__(
        self, images: Float[Array, "b h w c"], train: bool = False
    ) -> Float[Array, "b classes"]:
        """The lengths of the class capsules, ``[b h w c] -> [b classes]``."""
        return self._lengths_and_images(images)[0]

    def loss(
        self, images: Float[Array, "b h w c"], labels: Int[Array, " b"], train: bool = True
    ) -> tuple[Float[Array, "b classes"], Float[Array, " b"]]:
        """The margin loss plus the weighted reconstruction error.

        The decoder reconstructs from the capsule of the label's class.

        Args:
          images: ``[b h w c]``.
          labels: ``[b]``.
          train: ignored.

        Returns:
          The lengths of the class capsules, ``[b classes]``, and the losses, ``[b]``.
        """
        lengths, decoded = self._lengths_and_images(images, labels)
        error = jnp.sum((decoded - images) ** 2, axis=(1, 2, 3))
        return lengths, margin_loss(lengths, labels) + self.reconstruction * error

    @nn.compact
    def _lengths_and_images(self, images, labels=None) -> tuple[Array, Array]:
        """The lengths, and images decoded from the capsules of the labels or the longest ones."""
        x = nn.Conv(256, (9, 9), padding="VALID", dtype=self.dtype, name="conv")(images)
        capsules = PrimaryCapsules(dtype=self.dtype, name="primary")(nn.relu(x))
        capsules = RoutedCapsules(self.num_classes, iterations=self.iterations, name="classes")(
            capsules
        )
        lengths = length(capsules)
        classes = jnp.argmax(lengths, axis=-1) if labels is None else labels
        return lengths, self._decode(capsules, classes, images.shape)

    def _decode(self, capsules, classes, shape) -> Float[Array, "b h w c"]:
        """Decodes images from one capsule each; sows them as ``reconstruction``."""
        mask = jax.nn.one_hot(classes, self.num_classes, dtype=capsules.dtype)
        x = (capsules * mask[..., None]).reshape(capsules.shape[0], -1)
        for number, features in enumerate((512, 1024), start=1):
            init = nn.initializers.he_normal()
            x = nn.relu(nn.Dense(features, kernel_init=init, name=f"decoder_{number}")(x))
        decoded = nn.Dense(math.prod(shape[1:]), name="decoder_3")(x).reshape(shape)
        self.sow("intermediates", "reconstruction", decoded)
        return decoded


def capsnet(
    num_classes: int,
    *,
    iterations: int = 3,
    reconstruction: float = 0.0005,
    dtype: DTypeLike = jnp.float32,
) -> CapsNet:
    """Builds a `CapsNet`; the arguments are its attributes."""
    return CapsNet(num_classes, iterations, reconstruction, dtype)


FAMILIES: tuple[Family, ...] = (
    Family(
        "CapsNet",
        capsnet,
        ("CapsNet",),
        image_shape=(28, 28, 1),
        note="the size is for MNIST; the quoted error is that of an ensemble on CIFAR-10",
    ),
)
