"""What the table of networks is made of: families, each a pattern of names and a builder."""

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
      pattern: regular expression of the whole name; named groups are whole numbers that the
        builder takes.
      build: called with ``num_classes``, the groups and the overrides; its keyword arguments are
        the overrides that users may give.
      examples: the members that the paper names.
      image_shape: of the images that the members are meant for: height, width and channels.
      note: what a user should know of them, in a line.
      discrete: whether `discrete.OPTIONS` are options too: its routers are `CrossConnect`.
    """

    pattern: str
    build: Callable[..., nn.Module]
    examples: tuple[str, ...]
    image_shape: tuple[int, int, int] = CIFAR
    note: str = ""
    discrete: bool = False

    @property
    def overrides(self) -> tuple[str, ...]:
        """The keyword arguments of the builder that neither the name nor the table fixes."""
        fixed = {*re.compile(self.pattern).groupindex, *getattr(self.build, "keywords", ())}
        parameters = inspect.signature(self.build).parameters.values()
        own = (p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in fixed)
        return (*own, *(discrete.OPTIONS if self.discrete else ()))
