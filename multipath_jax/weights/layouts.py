"""How others name the arrays of networks that we have too: a table of rules for each family.

A rule is a pattern of the path of one of our modules, and the name of theirs. Our numbers count
from one; in a name, ``{block}`` is the number that the pattern's group of that name found, and
``{block0}`` the same from zero.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

Key = tuple[str, ...]  # of a variable, flattened: collection, modules, leaf
Shape = tuple[int, ...]

# The leaves of our modules by collection, name and number of axes -> how PyTorch calls them.
LEAVES = {
    ("params", "kernel", 4): "weight",
    ("params", "kernel", 2): "weight",
    ("params", "scale", 1): "weight",
    ("params", "bias", 1): "bias",
    ("batch_stats", "mean", 1): "running_mean",
    ("batch_stats", "var", 1): "running_var",
}
# Arrays of theirs that nothing computes with: how many batches BatchNorm has seen.
UNUSED = re.compile(r"(.*\.)?num_batches_tracked")
# The names of torchvision's and timm's networks -> ours.
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
    """Where a variable of ours is in a file.

    Attributes:
      name: of the array there.
      side: as in `Rule`; 0: its axes are in our order.
    """

    name: str
    side: int


@dataclasses.dataclass(frozen=True)
class Rule:
    """What one kind of module is called.

    Attributes:
      ours: a regular expression of the whole path of our module.
      theirs: the name of their module.
      side: of the maps that a dense layer is given flattened: theirs lists them channel by
        channel, ours pixel by pixel; 1 for all other modules.
    """

    ours: str
    theirs: str
    side: int = 1


@dataclasses.dataclass(frozen=True)
class Layout:
    """The names of a family of networks.

    Attributes:
      rules: the first that matches counts.
      options: what our network has to be made with to compute what theirs does, by name.
      unless: a pattern of names there; where one of them is, ``options`` are not needed.
    """

    rules: tuple[Rule, ...]
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    unless: str = r"$^"

    def places(self, shapes: Mapping[Key, Shape]) -> dict[Key, Place]:
        """Those of the variables that have one; arrays of several paths have none.

        Args:
          shapes: of a network's variables, flattened.
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
    """Our own names, for networks that nobody else has."""

    def places(self, shapes: Mapping[Key, Shape]) -> dict[Key, Place]:
        return {key: Place("/".join(key), side=0) for key in shapes}


def _positions(keys: Iterable[Key]) -> dict[str, int]:
    """Where stages' convolutions and norms are in one sequence, as torchvision's VGG numbers them.

    Convolution, BatchNorm and ReLU take a place each, and so does the pooling after every stage.
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
    """A convolution of ours and its BatchNorm."""
    return Rule(f"{ours}/conv", conv), Rule(f"{ours}/norm", norm)


def _resnet(stacks: int, projection: str, dense: str) -> tuple[Rule, ...]:
    """Residual networks of so many stacks; what the two kinds call differently.

    Args:
      projection: the convolution and the BatchNorm of a shortcut.
      dense: the last layer.
    """
    ours, theirs = rf"stack_(?P<stack>[1-{stacks}])/block_(?P<block>\d+)", "layer{stack}.{block0}"
    return (
        *_block("stem/conv", "conv1", "bn1"),
        *_block(rf"{ours}/conv_(?P<conv>\d)", f"{theirs}.conv{{conv}}", f"{theirs}.bn{{conv}}"),
        *_block(f"{ours}/projection", f"{theirs}.{projection}.0", f"{theirs}.{projection}.1"),
        Rule("dense/dense", dense),
    )


def _vgg(*dense: str) -> tuple[Rule, ...]:
    """VGG with BatchNorm; ``dense``: the three last layers."""
    first, second, last = dense
    return (
        *_block(r"stage_\d/conv_\d", "features.{position}", "features.{position}"),
        Rule("dense_1/dense", first, side=7),
        Rule("dense_2/dense", second),
        Rule("dense_3/dense", last),
    )


# A network is written in the names of the first layout that has them all.
LAYOUTS = (
    # He et al.'s form for CIFAR, of three stacks. Shortcuts without parameters have their zeros on
    # both sides, as nearly all definitions do.
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
