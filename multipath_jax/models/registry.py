"""The registry of all networks by name: `create_model` and `list_models`."""

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
from multipath_jax.utils.names import nearest

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
    """The names of the paper's networks.

    `create_model` also accepts other numbers of paths, and other depths and widths, in the names.

    Returns:
      The names, in the order of the tables.
    """
    return [name for family in FAMILIES for name in family.examples]


def create_model(name: str, num_classes: int = 10, **overrides) -> nn.Module:
    """Creates one of the paper's networks by name.

    Args:
      name: name as in the paper, such as ``"BaseCNN-2-CC"``, with any number of paths.
      num_classes: width of the output.
      **overrides: options of the network, such as ``dtype``, ``execution`` or ``custom_vjp``; for
        ``-CC`` networks also ``k`` and the fields of `layers.Choice`.

    Returns:
      A ``flax.linen.Module`` with
      ``apply(variables, images [b h w c], train=False) -> logits [b num_classes]``.

    Raises:
      UserError: the name is unknown (the message has the nearest names), an override is unknown, or
        the number of paths or classes is below 1.
    """
    family, match = _find(name)
    unknown = sorted(set(overrides) - set(family.overrides))
    if unknown:
        raise UserError(
            f"{name} has no option {unknown[0]!r}; it has {', '.join(family.overrides)}"
        )
    numbers = {key: int(value) for key, value in match.groupdict().items()}
    if num_classes < 1 or 0 in numbers.values():
        raise UserError(f"{name} with {num_classes} classes: needs at least 1 path and 1 class")
    choices = {key: overrides.pop(key) for key in discrete.OPTIONS if key in overrides}
    network = family.build(num_classes, **numbers, **overrides)
    return discrete.discrete(network, **choices) if choices else network


def family_of(name: str) -> Family:
    """The family of a network. Raises UserError if the name is unknown."""
    return _find(name)[0]


def _find(name: str) -> tuple[Family, re.Match]:
    for family in FAMILIES:
        if match := re.fullmatch(family.pattern, name):
            return family, match
    near = nearest(name, list_models(), 3, alike=0.4)
    hint = f"did you mean {near}?" if near else "see multipath_jax.list_models()"
    raise UserError(f"there is no network {name!r}; {hint}")
