"""The rows of Tables 2, 3 and 4: the paper's figures for every network, with its name here.

Errors are in percent. The summary, the reproduction, the pages and the tests all use this table.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Literal

from multipath_jax.models.family import CIFAR, IMAGENET

# The columns of errors, and their titles.
COLUMNS = {
    "cifar10": "CIFAR-10",
    "cifar10_350": "CIFAR-10, 350 epochs",
    "cifar100": "CIFAR-100",
    "top1": "top-1",
    "top5": "top-5",
    "top1_10crop": "10-crop top-1",
    "top5_10crop": "10-crop top-5",
}


@dataclasses.dataclass(frozen=True, eq=False)  # compared by identity, so that it is hashable
class Row:
    """One row of a table.

    Attributes:
      table: 2, 3 or 4; None for a network that is not in the paper.
      network: name of the network as printed.
      model: name of the network for `create_model`.
      params: printed number of parameters in millions; None if not printed.
      errors: printed errors in percent, by column (the keys of `COLUMNS`).
      digits: number of printed decimals of ``params``.
      num_classes: number of classes for which the parameters are counted.
      image_shape: height, width and channels of the input.
      quoted: whether the paper quotes the figures from other papers.
      exception: the reason, if our number of parameters differs from the printed one.
    """

    table: Literal[2, 3, 4] | None
    network: str
    model: str
    params: float | None
    errors: Mapping[str, float]
    digits: int = 2
    num_classes: int = 10
    image_shape: tuple[int, int, int] = CIFAR
    quoted: bool = False
    exception: str = ""

    @property
    def tolerance(self) -> float:
        """Tolerance of ``params`` in millions: half a unit of the last printed digit, plus 1 %."""
        return 0.5 * 10**-self.digits + 0.01 * self.params


def _table_2() -> tuple[Row, ...]:
    def row(network, params, error, error_350=None, *, model=None, digits=2, **more):
        errors = {"cifar10": error} | ({"cifar10_350": error_350} if error_350 else {})
        return Row(2, network, model or network, params, errors, digits, **more)

    return (
        row("BaseCNN", 0.55, 9.26),
        row("WideCNN", 1.67, 8.96),
        row("DeepCNN", 2.0, 8.49, digits=1),
        row("BaseCNN-3", 1.5, 9.41, digits=1, exception="three BaseCNNs have 1.65M"),
        row("BaseCNN Ensemble", 1.66, 7.87, model="BaseCNN-Ensemble"),
        row("All Ensemble", 4.27, 6.9, model="All-Ensemble"),
        row("SEBaseCNN", 0.58, 8.99, exception="a reduction of 16 gives 0.56M"),
        row("SEDeepCNN", 2.06, 8.15),
        row("Cr-Stitch2", 1.11, 7.89),
        row("NDDR-CNN2", 0.96, 7.81),
        row("NDDR-CNN2-shortcut", 0.99, 8.33),
        row("VGG16", 14.9, 6.98, digits=1),
        row("Capsule Nets", 8.2, 10.6, model="CapsNet", digits=1, quoted=True,
            image_shape=(28, 28, 1)),
        row("Highway Nets", 2.3, 7.54, model="HighwayNet", digits=1, quoted=True),
        row("BaseCNN-2-CP", 1.3, 7.24, 6.48, digits=1),
        row("BaseCNN-3-CP", 2.23, 6.63, 6.04),
        row("BaseCNN-4-CP", 3.34, 6.45, 5.91),
        row("BaseCNN-2-CC", 1.11, 7.03, 6.53),
        row("BaseCNN-3-CC", 1.67, 6.51, 6.09),
        row("BaseCNN-4-CC", 2.22, 6.55, 6.26),
    )  # fmt: skip


def _table_3() -> tuple[Row, ...]:
    def row(network, params, error, error_100=None, *, model=None, digits=2, **more):
        errors = {"cifar10": error} | ({"cifar100": error_100} if error_100 else {})
        return Row(3, network, model or network, params, errors, digits, **more)

    return (
        row("ResNet20", 0.27, 8.75, quoted=True),
        row("ResNet110", 1.7, 6.61, 26.88, digits=1, quoted=True),
        row("ResNet164", 2.5, 5.93, 25.16, digits=1, quoted=True,
            exception="the bottleneck network has 1.70M"),
        row("WRN-40-2", 2.2, 5.33, 26.04, digits=1, quoted=True),
        row("HyperWRN40-2", 0.15, 7.23, quoted=True),
        row("SEResNet110", 1.7, 5.21, 23.85, digits=1, quoted=True),
        row("BlockDrop", 1.7, 6.4, 26.3, digits=1, quoted=True),
        row("ConvNet-AIG", 1.78, 5.76, quoted=True),
        row("ConvNet-AIG all", 1.78, 5.14, model="ConvNet-AIG-all", quoted=True),
        row("SkipNet", 1.7, 6.4, 28.79, digits=1, quoted=True),
        row("ResNet20-2-CP", 0.59, 5.86, 27.7),
        row("ResNet20-3-CP", 0.92, 4.99, 25.13),
        row("ResNet20-4-CP", 1.29, 4.81, 23.82),
        row("ResNet20-2-CC", 0.55, 5.5, 27.36),
        row("ResNet20-3-CC", 0.82, 5.18, 25.76),
        row("ResNet20-4-CC", 1.1, 4.96, 24.81, digits=1),
        row("ResNet32-2-CC", 0.94, 5.14, 25.96),
        row("ResNet32-3-CC", 1.41, 4.96, 24.51),
        row("ResNet32-4-CC", 1.88, 4.59, 23.52),
    )  # fmt: skip


def _table_4() -> tuple[Row, ...]:
    columns = ("top1", "top5", "top1_10crop", "top5_10crop")

    def row(network, params, errors, *, num_classes=1000, digits=1, **more):
        by_column = dict(zip(columns, errors, strict=False))
        return Row(4, network, network, params, by_column, digits, num_classes, IMAGENET, **more)

    subset = {"num_classes": 100}
    return (
        row("ResNet18", 11.7, (30.4, 10.93, 28.22, 9.42), quoted=True),
        row("ResNet34", 21.8, (26.77, 8.77, 24.52, 7.46), quoted=True),
        row("WRN-18-1.5", 25.9, (27.06, 9.0), quoted=True),
        row("ResNet18-2-CC", 23.4, (26.48, 8.6, 24.5, 7.34)),
        row("ResNet50", 23.71, (20.46, 4.96, 19.26, 4.72), digits=2, **subset),
        row("ResNet101", 42.7, (19.16, 4.58, 17.78, 4.44), **subset),
        row("WideResNet50-2", 62.0, (19.82, 5.02, 18.62, 4.76), **subset,
            exception="the network has 67.0M at 100 classes"),
        row("ResNeXt50-2-64", 47.5, (20.26, 5.06, 19.0, 4.84), **subset,
            exception="two groups of 64 give 44.4M at 100 classes"),
        row("ResNet50-2-CC", 47.5, (18.64, 4.34, 17.62, 4.0), **subset),
    )  # fmt: skip


ROWS: tuple[Row, ...] = (*_table_2(), *_table_3(), *_table_4())


def rows(table: int | None = None, model: str | None = None) -> tuple[Row, ...]:
    """The rows of a table, of a network, or both; None selects all.

    Args:
      table: 2, 3 or 4.
      model: name of a network for `create_model`.
    """
    return tuple(row for row in ROWS if table in (None, row.table) and model in (None, row.model))


@functools.cache  # rows are compared by identity
def unprinted(model: str, num_classes: int = 10, image_shape: tuple[int, int, int] = CIFAR) -> Row:
    """A row for a network, or a number of classes or image size, that is not in the paper."""
    return Row(None, model, model, None, {}, num_classes=num_classes, image_shape=image_shape)
