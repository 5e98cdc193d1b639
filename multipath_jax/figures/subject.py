"""A run to be looked at: what its figures share, each thing computed once."""

import argparse
import dataclasses
import pathlib
from collections.abc import Container
from functools import cached_property

import numpy as np
from jaxtyping import UInt8

from multipath_jax import pictures
from multipath_jax.data import EncodedSplit, Split
from multipath_jax.data.datasets import evaluated
from multipath_jax.data.images import BadImage
from multipath_jax.errors import UserError
from multipath_jax.figures import selectors, weights
from multipath_jax.gates import Observation, Outline, observe, outline
from multipath_jax.runs import LoadedRun
from multipath_jax.training.hooks import SPLITS
from multipath_jax.utils import filesystem

MOST = 2000  # 300 MB of images of 224x224; --limit may ask for more


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A run and what its figures share, each thing computed when the first figure asks for it.

    Raises of all: UserError, for flags that do not fit the network or its data.
    """

    run: LoadedRun
    flags: argparse.Namespace

    @cached_property
    def folder(self) -> pathlib.PurePath:
        """Where the figures go; made."""
        return filesystem.output_folder("--out", self.flags.out or self.run.workdir / "figures")

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """Of an image."""
        return self.run.description.image_shape

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of the classes."""
        return self.run.description.class_names

    @cached_property
    def outline(self) -> Outline:
        """Of the network."""
        return outline(self.run, self.shape)

    @cached_property
    def parallel_layers(self) -> list[str]:
        """The layers that parallel paths have each for themselves."""
        return weights.parallel_layers(self.run.variables["params"], self.outline)

    @property
    def kind(self) -> str:
        """Of the images in `test`: ``test``, or ``held-out`` if training images were held out."""
        return SPLITS[evaluated(self.run.config.dataset.holdout)]

    @cached_property
    def test(self) -> Split:
        """The test split, or its first images: of one that stays encoded no more than `MOST`."""
        for other in self.run.other_images:
            print(f"not the data of training: {other}")
        encoded = isinstance(self.run.dataset.test, EncodedSplit)
        return self.run.test(self.flags.limit or (MOST if encoded else None))

    @cached_property
    def observation(self) -> Observation:
        """Of the test split."""
        return observe(self.run, self.test.images)

    @cached_property
    def gates(self) -> list[selectors.GateIndex]:
        """The chosen gates, or those that differ most between images."""
        if self.flags.gates is None:
            return selectors.liveliest_gates(self.observation)
        return selectors.gates(self.flags.gates, self.outline)

    @cached_property
    def layers(self) -> list[str]:
        """The chosen layers of parallel paths, or four of them."""
        if self.flags.layers is None:
            return selectors.spread(self.parallel_layers, 4)
        return selectors.layers(self.flags.layers, self.parallel_layers)

    @cached_property
    def pictures(self) -> list[tuple[UInt8[np.ndarray, "h w c"], str]]:
        """The chosen images, and what they are."""
        wanted = self.flags.images
        # Pictures of one's own need no data set.
        count = len(self.test.labels) if selectors.of_the_split(wanted) else 0
        return [self._picture(item) for item in selectors.images(wanted, count, self.kind)]

    def _picture(self, item: int | pathlib.Path) -> tuple[np.ndarray, str]:
        if isinstance(item, int):
            label = self.names[self.test.labels[item]]
            return self.test.images[item], f"{self.kind} image {item}: {label}"
        try:
            return pictures.read(item, self.run), item.name
        except BadImage as error:
            raise UserError(f"--images: {item} cannot be read ({error})") from error

    def classes(self, default: int) -> list[int]:
        """The chosen classes, or the first ones."""
        if self.flags.classes is None:
            return list(range(min(default, len(self.names))))
        return selectors.classes(self.flags.classes, self.names)

    def check(self, figures: Container[str]) -> None:
        """Raises UserError for flags that do not fit, before anything is computed or written."""
        if self.flags.gates is not None and self.outline.routers:
            selectors.gates(self.flags.gates, self.outline)
        if "routes" in figures:
            self.pictures  # noqa: B018 (computed, and kept)
        if "weights" in figures:
            self.layers  # noqa: B018
        self.classes(0)
        self.folder  # noqa: B018
