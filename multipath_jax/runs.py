"""A trained network by its workdir, for whatever comes after training.

run = multipath_jax.load_run("runs/digits")
logits = run.logits(images)  # uint8 [b h w c], of the run's image_shape -> float32 [b classes]
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from functools import cached_property

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from flax import traverse_util
from jaxtyping import Array, Float, PyTree, UInt8
from ml_collections import ConfigDict

from multipath_jax.data import Dataset, Description, EncodedSplit, Split, describe, normalize
from multipath_jax.data.description import read_description
from multipath_jax.evaluation.crops import centre_crop
from multipath_jax.training import checkpoints
from multipath_jax.training.config import read_config
from multipath_jax.training.parts import make_model, read_dataset, seen_shape

Images = UInt8[Array, "b h w c"] | UInt8[np.ndarray, "b h w c"]


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedRun:
    """A trained network and what belongs to it.

    Attributes:
      workdir: where it comes from.
      config: the recipe by which it was trained.
      step: of the checkpoint, the steps it was trained for.
      model: the network; ``model.apply(variables, prepare(images), train=False)`` are its logits.
      variables: its parameters and statistics, on the first device.
      description: of its data set: class names, image shape, mean and deviation of the pixels.
    """

    workdir: epath.Path
    config: ConfigDict
    step: int
    model: nn.Module
    variables: PyTree
    description: Description

    @cached_property
    def dataset(self) -> Dataset:
        """The whole data set, read when it is first asked for. Raises UserError if it is gone."""
        return read_dataset(self.config.dataset)

    def test(self, limit: int | None = None) -> Split:
        """The test split, or its first images, as the network sees them: their centre crops."""
        split, crop = self.dataset.test, self.config.dataset.crop
        count = min(limit or len(split), len(split))
        if isinstance(split, EncodedSplit):
            images, labels, _ = split.load(np.arange(count))
        else:
            images, labels = split.images[:count], split.labels[:count]
        return Split(centre_crop(images, crop) if crop else images, labels)

    def prepare(self, images: Images) -> Float[Array, "b h w c"]:
        """Images as they are seen, uint8 -> the network's input, as in evaluation."""
        return normalize(jnp.asarray(images), self.description.mean, self.description.std)

    def forward(self, variables: PyTree, images: Images) -> Float[Array, "b classes"]:
        """Images as they are seen -> logits, as a pure function to be transformed further."""
        return self.model.apply(variables, self.prepare(images), train=False)

    def logits(self, images: Images) -> Float[Array, "b classes"]:
        """The same with the run's own weights, compiled once for every batch size."""
        return self._compiled(self.variables, images)

    @cached_property
    def _compiled(self) -> Callable[[PyTree, Images], Array]:
        return jax.jit(self.forward)


def load_run(
    workdir: str | os.PathLike, checkpoint: str | int = "best", dtype: str | None = None
) -> LoadedRun:
    """The network that was trained in a workdir; nothing there is changed.

    The data set need not be there, but for runs from before its description was kept.

    Args:
      checkpoint: ``"best"`` (the lowest test error), ``"latest"``, or a step.
      dtype: of the computation, in place of the config's: ``"float32"`` or ``"bfloat16"``.

    Raises:
      UserError: the workdir has no such checkpoint or it is damaged, no readable config, or
        neither a description of its data set nor the data set.
    """
    workdir = epath.Path(workdir).expanduser().absolute()
    with _quiet(), contextlib.closing(checkpoints.open_existing(workdir)) as found:
        config = read_config(workdir / checkpoints.CONFIG_FILE)
        if dtype is not None:
            config.dtype = dtype
        description = _description(workdir, config)
        model = make_model(config, description.num_classes)
        step = found.find(checkpoint)
        shapes = {
            key: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
            for key, leaf in found.shapes(step).items()
        }
        weights = found.restore_weights(traverse_util.unflatten_dict(shapes), step)
    return LoadedRun(workdir, config, step, model, jax.device_put(weights), description)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Orbax warns of reading only, which is meant, and prints what it also raises."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.FATAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _description(workdir: epath.Path, config: ConfigDict) -> Description:
    path = workdir / checkpoints.DATASET_FILE
    if path.exists():
        return read_description(path)
    dataset = read_dataset(config.dataset)
    return describe(dataset, seen_shape(dataset, config.dataset.crop))
