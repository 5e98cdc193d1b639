"""A trained network by its workdir, for whatever comes after training.

run = multipath_jax.load_run("runs/digits")
logits = run.logits(images)  # uint8 [b h w c], as in the data set -> float32 [b classes]
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

from multipath_jax.data import Dataset, Description, describe, load_dataset, normalize
from multipath_jax.data.description import read_description
from multipath_jax.training import checkpoints
from multipath_jax.training.config import read_config
from multipath_jax.training.parts import make_model

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
        return _load_dataset(self.config)

    def prepare(self, images: Images) -> Float[Array, "b h w c"]:
        """Images as they are stored -> the network's input, as in evaluation."""
        return normalize(jnp.asarray(images), self.description.mean, self.description.std)

    def forward(self, variables: PyTree, images: Images) -> Float[Array, "b classes"]:
        """Images as they are stored -> logits, as a pure function to be transformed further."""
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
    return read_description(path) if path.exists() else describe(_load_dataset(config))


def _load_dataset(config: ConfigDict) -> Dataset:
    return load_dataset(config.dataset.name, config.dataset.data_dir or None)
