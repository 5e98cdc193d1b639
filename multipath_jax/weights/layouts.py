"""The names of arrays in other libraries: a table of rules for each family of networks.

A rule maps a pattern for the path of a module of this package to the name of the module in the
other library. In that name, ``{block}`` is the number matched by the group ``block`` of the
pattern, which counts from one, and ``{block0}`` the same number counted from zero.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

Key = tuple[str, ...]  # flattened key of a variable: collection, modules, leaf
Shape = tuple[int, ...]

# PyTorch's names of variables, by collection, name and number of axes.
LEAVES = {
    ("params", "kernel", 4): "weight",
    ("params", "kernel", 2): "weight",
    ("params", "scale", 1): "weight",
    ("params", "bias", 1): "bias",
    ("batch_stats", "mean", 1): "running_mean",
    ("batch_stats", "var", 1): "running_var",
}
# Counters of batches, which do not affect the output.
UNUSED = re.compile(r"(.*\.)?num_batches_tracked")
# Our names of the networks of torchvision and timm.
ARCHITECTURES = {
    "resnet18": "ResNet18",
    "resnet34": "ResNet34",
    "resnet50": "ResNet50",
    "resnet101": "ResNet101",
    "resnet152": "ResNet152",
    "wide_resnet50_2": "WideResNet50-2",
    "vgg11_bn": "VGG11-BN",
    "vgg13_bn": "VGG13-BN",
    "vgg16_bn": "VGG16-BN",
    "vgg19_bn": "VGG19-BN",
}


class Place(NamedTuple):
    """The array for a variable in a file.

    Attributes:
      name: its name.
      side: as in `Rule`; 0 if the axes have our order.
    """

    name: str
    side: int


@dataclasses.dataclass(frozen=True)
class Rule:
    """The name of one kind of module.

    Attributes:
      ours: a regular expression for the whole path of the module in this package.
      theirs: the name of the module in the other library.
      side: side of the feature maps that a dense layer takes flattened, in the order of channels
        first in the other library and channels last here; 1 for all other modules.
    """

    ours: str
    theirs: str
    side: int = 1


@dataclasses.dataclass(frozen=True)
class Layout:
    """The names of a family of networks.

    Attributes:
      rules: the rules; the first that matches is used.
      options: options with which our network computes what theirs does, by name.
      unless: a pattern; if a name in the file matches, ``options`` are not needed.
    """

    rules: tuple[Rule, ...]
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    unless: str = r"$^"

    def places(self, shapes: Mapping[Key, Shape]) -> dict[Key, Place]:
        """The places of the variables that have one; variables of several paths have none.

        Args:
          shapes: shapes of a network's variables, by flattened key.
        """
        positions = _positions(shapes)
        found = {}
        for key, shape in shapes.items():
            collection, *modules, leaf = key
            suffix = LEAVES.get((collection, leaf, len(shape)))
            path = "/".join(modules)
            for rule in self.rules if suffix else ():
                if match := re.fullmatch(rule.ours, path):
                    numbers = {name: int(text) for name, text in match.groupdict().items()}
                    from_zero = {f"{name}0": number - 1 for name, number in numbers.items()}
                    position = positions.get(path, 0)
                    name = rule.theirs.format(**numbers, **from_zero, position=position)
                    found[key] = Place(f"{name}.{suffix}", rule.side)
                    break
        return found


class _Own(Layout):
    """The names of this package, for all other networks."""

    def places(self, shapes: Mapping[Key, Shape]) -> dict[Key, Place]:
        return {key: Place("/".join(key), side=0) for key in shapes}


def _positions(keys: Iterable[Key]) -> dict[str, int]:
    """Positions of convolutions and norms in torchvision's VGG, which is one sequence of layers.

    Convolution, BatchNorm and ReLU have one position each, as has the pooling after every stage.
    """
    paths = {"/".join(key[1:-1]) for key in keys}
    matches = (re.fullmatch(r"stage_(\d+)/conv_(\d+)/conv", path) for path in paths)
    convs = sorted((int(match[1]), int(match[2])) for match in matches if match)
    positions = {}
    for index, (stage, conv) in enumerate(convs):
        first = 3 * index + stage - 1
        positions[f"stage_{stage}/conv_{conv}/conv"] = first
        positions[f"stage_{stage}/conv_{conv}/norm"] = first + 1
    return positions


def _block(ours: str, conv: str, norm: str) -> tuple[Rule, Rule]:
    """Rules for a convolution and its BatchNorm."""
    return Rule(f"{ours}/conv", conv), Rule(f"{ours}/norm", norm)


def _resnet(stacks: int, projection: str, dense: str) -> tuple[Rule, ...]:
    """Rules for residual networks.

    Args:
      stacks: number of stacks.
      projection: name of the projection in a shortcut.
      dense: name of the last layer.
    """
    ours, theirs = rf"stack_(?P<stack>[1-{stacks}])/block_(?P<block>\d+)", "layer{stack}.{block0}"
    return (
        *_block("stem/conv", "conv1", "bn1"),
        *_block(rf"{ours}/conv_(?P<conv>\d)", f"{theirs}.conv{{conv}}", f"{theirs}.bn{{conv}}"),
        *_block(f"{ours}/projection", f"{theirs}.{projection}.0", f"{theirs}.{projection}.1"),
        Rule("dense/dense", dense),
    )


def _vgg(*dense: str) -> tuple[Rule, ...]:
    """Rules for VGG with BatchNorm; ``dense`` are the names of the last three layers."""
    first, second, last = dense
    return (
        *_block(r"stage_\d/conv_\d", "features.{position}", "features.{position}"),
        Rule("dense_1/dense", first, side=7),
        Rule("dense_2/dense", second),
        Rule("dense_3/dense", last),
    )


# A network is written in the first layout that has all its variables.
LAYOUTS = (
    # He et al.'s ResNets for CIFAR with three stacks. Shortcuts without parameters pad channels on
    # both sides, as in nearly all implementations.
    Layout(
        _resnet(3, "shortcut", "linear"),
        options={"shortcut": "centered"},
        unless=r".*\.shortcut\.0\.weight",
    ),
    Layout(_resnet(4, "downsample", "fc")),  # torchvision's ResNets and timm's
    Layout(_vgg("classifier.0", "classifier.3", "classifier.6")),  # torchvision's
    Layout(_vgg("pre_logits.fc1", "pre_logits.fc2", "head.fc")),  # timm's
    _Own(()),
)
