"""The one table that names every network; `create_model` and `list_models` read it."""

import difflib
import re

import flax.linen as nn

from multipath_jax.errors import UserError
from multipath_jax.models import (
    capsnet,
    cifar_resnet,
    conditional,
    discrete,
    ensemble,
    highway,
    hyper,
    imagenet_resnet,
    peers,
    plain,
    vgg,
)
from multipath_jax.models.family import Family

FAMILIES: tuple[Family, ...] = (
    *plain.FAMILIES,
    *peers.FAMILIES,
    *ensemble.FAMILIES,
    *capsnet.FAMILIES,
    *highway.FAMILIES,
    *vgg.FAMILIES,
    *cifar_resnet.FAMILIES,
    *hyper.FAMILIES,
    *conditional.FAMILIES,
    *imagenet_resnet.FAMILIES,
)


def list_models() -> list[str]:
    """The names of the paper's networks; the numbers in them may be others for `create_model`."""
    return [name for family in FAMILIES for name in family.examples]


def create_model(name: str, num_classes: int = 10, **overrides) -> nn.Module:
    """The network of that name, as a ``flax.linen.Module``.

    Args:
      name: as the paper writes it, such as ``"BaseCNN-2-CC"``; any number of paths is accepted.
      num_classes: width of the output.
      **overrides: options of the family, such as ``dtype``, ``execution`` or ``custom_vjp``; of
        networks of cross-connections also ``k`` and the fields of `layers.Choice`.

    Returns:
      A module with ``apply(variables, images [b h w c], train=False) -> logits [b num_classes]``.

    Raises:
      UserError: an unknown name (the nearest are named), an unknown override, or a number of
        paths or classes below one.
    """
    family, match = _find(name)
    unknown = sorted(set(overrides) - set(family.overrides))
    if unknown:
        raise UserError(
            f"{name} has no option {unknown[0]!r}; it has {', '.join(family.overrides)}"
        )
    numbers = {key: int(value) for key, value in match.groupdict().items()}
    if num_classes < 1 or 0 in numbers.values():
        raise UserError(f"{name} with {num_classes} classes: paths and classes start at one")
    choices = {key: overrides.pop(key) for key in discrete.OPTIONS if key in overrides}
    network = family.build(num_classes, **numbers, **overrides)
    return discrete.discrete(network, **choices) if choices else network


def family_of(name: str) -> Family:
    """The family that a network belongs to. Raises UserError for an unknown name."""
    return _find(name)[0]


def _find(name: str) -> tuple[Family, re.Match]:
    for family in FAMILIES:
        if match := re.fullmatch(family.pattern, name):
            return family, match
    nearest = difflib.get_close_matches(name, list_models(), n=3, cutoff=0.4)
    hint = f"did you mean {', '.join(nearest)}?" if nearest else "see multipath_jax.list_models()"
    raise UserError(f"there is no network {name!r}; {hint}")
