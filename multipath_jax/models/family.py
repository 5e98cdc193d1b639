"""Families of networks: a pattern of names and a function that builds them."""

import dataclasses
import inspect
import re
from collections.abc import Callable

import flax.linen as nn

from multipath_jax.models import discrete

CIFAR = (32, 32, 3)  # height, width and channels of an image
IMAGENET = (224, 224, 3)


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of networks.

    Attributes:
      pattern: regular expression for the whole name; its named groups are integer arguments of
        ``build``.
      build: builds a network; called with ``num_classes``, the named groups and the overrides. Its
        keyword-only arguments are the possible overrides.
      examples: names of the members that the paper uses.
      image_shape: height, width and channels of the images that the members are designed for.
      note: one line for users about the members.
      discrete: whether ``k`` and the other `discrete.OPTIONS` are overrides, too.
    """

    pattern: str
    build: Callable[..., nn.Module]
    examples: tuple[str, ...]
    image_shape: tuple[int, int, int] = CIFAR
    note: str = ""
    discrete: bool = False

    @property
    def overrides(self) -> tuple[str, ...]:
        """The keyword-only arguments of ``build`` that the name does not fix."""
        fixed = {*re.compile(self.pattern).groupindex, *getattr(self.build, "keywords", ())}
        parameters = inspect.signature(self.build).parameters.values()
        own = (p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in fixed)
        return (*own, *(discrete.OPTIONS if self.discrete else ()))
