"""The inputs of the figures, computed once for all figures of a run."""

import argparse
import dataclasses
import pathlib
from collections.abc import Container
from functools import cached_property

import numpy as np
from jaxtyping import Int, Num

from multipath_jax import pictures
from multipath_jax.data import EncodedSplit, Split
from multipath_jax.data.datasets import evaluated
from multipath_jax.data.images import BadImage
from multipath_jax.errors import UserError
from multipath_jax.figures import selectors, weights
from multipath_jax.gates import Observation, Outline, observe, outline
from multipath_jax.metrics_file import SPLITS
from multipath_jax.runs import LoadedRun
from multipath_jax.utils import filesystem

MOST = 2000  # default limit for encoded splits: 300 MB of 224x224 images; --limit overrides it


@dataclasses.dataclass(frozen=True, eq=False)
class FigureInputs:
    """The inputs of the figures of a run, computed on first access and cached.

    All properties raise UserError for flags that do not match the network or its data.

    Attributes:
      run: the run.
      flags: the flags of the program.
    """

    run: LoadedRun
    flags: argparse.Namespace

    @cached_property
    def folder(self) -> pathlib.PurePath:
        """The output folder, which is created."""
        return filesystem.output_folder("--out", self.flags.out or self.run.workdir / "figures")

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the images."""
        return self.run.description.image_shape

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of the classes."""
        return self.run.description.class_names

    @cached_property
    def outline(self) -> Outline:
        """The outline of the network."""
        return outline(self.run, self.shape)

    @cached_property
    def parallel_layers(self) -> list[str]:
        """The names of the layers in parallel paths."""
        return weights.parallel_layers(self.run.variables["params"], self.outline)

    @property
    def kind(self) -> str:
        """The kind of the images in `test`: ``test``, or ``held-out`` for training images."""
        given = self.run.given
        return SPLITS[given.evaluated if given else evaluated(self.run.config.dataset.holdout)]

    @cached_property
    def total(self) -> int:
        """The number of images in the whole test split."""
        for other in self.run.other_images:
            print(f"the data differ from those of training: {other}")
        return len(self.run.dataset.test)

    @cached_property
    def numbers(self) -> Int[np.ndarray, " b"]:
        """The numbers of the images in `test`, counted from zero in the whole test split.

        They are evenly spaced, since splits of folders are sorted by class: as many as --limit, or
        else `MOST` if the split is encoded, or else all.
        """
        encoded = isinstance(self.run.dataset.test, EncodedSplit)
        count = self.flags.limit or (MOST if encoded else self.total)
        if count < self.total:
            more = "" if self.flags.limit else "; --limit=N for more"
            print(f"{count:,} of {self.total:,} {self.kind} images, evenly spaced{more}")
        return np.array(selectors.evenly_spaced(range(self.total), count))

    @cached_property
    def test(self) -> Split:
        """The test split, or some of its images (`numbers`)."""
        if len(self.numbers) == self.total:
            return self.run.test()
        return self.run.test_images(self.numbers)

    @cached_property
    def observation(self) -> Observation:
        """The records for the test split."""
        return observe(self.run, self.test.images)

    @cached_property
    def gates(self) -> list[selectors.GateIndex]:
        """The selected gates; by default those with the largest deviation over images."""
        if self.flags.gates is None:
            return selectors.most_variable_gates(self.observation)
        return selectors.gates(self.flags.gates, self.outline)

    @cached_property
    def layers(self) -> list[str]:
        """The selected layers of parallel paths; by default four."""
        if self.flags.layers is None:
            return selectors.evenly_spaced(self.parallel_layers, 4)
        return selectors.layers(self.flags.layers, self.parallel_layers)

    @cached_property
    def pictures(self) -> list[tuple[Num[np.ndarray, "h w c"], str]]:
        """The selected images, with descriptions; by default the first three of the split."""
        wanted = self.flags.images
        if wanted is None:
            return [self._picture(number) for number in range(min(3, self.total))]
        # Image files do not need the data set.
        count = self.total if selectors.needs_test_split(wanted) else 0
        return [self._picture(item) for item in selectors.images(wanted, count, self.kind)]

    def _picture(self, item: int | pathlib.Path) -> tuple[np.ndarray, str]:
        if isinstance(item, int):
            split = self.run.test_images(np.array([item]))
            return split.images[0], f"{self.kind} image {item}: {self.names[split.labels[0]]}"
        try:
            return pictures.read(item, self.run), item.name
        except BadImage as error:
            raise UserError(f"--images: {item} cannot be read ({error})") from error

    def classes(self, default: int) -> list[int]:
        """The labels of the selected classes; by default the first ``default`` ones."""
        if self.flags.classes is None:
            return list(range(min(default, len(self.names))))
        return selectors.classes(self.flags.classes, self.names)

    def check(self, figures: Container[str]) -> None:
        """Raises UserError for invalid flags, before any figure is computed or written."""
        if self.flags.gates is not None and self.outline.routers:
            selectors.gates(self.flags.gates, self.outline)
        if "routes" in figures:
            self.pictures  # noqa: B018 (computed and cached)
        if "weights" in figures:
            self.layers  # noqa: B018
        self.classes(0)
        self.folder  # noqa: B018
