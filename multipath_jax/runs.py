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

from multipath_jax import filesystem
from multipath_jax.data import Dataset, Description, EncodedSplit, Split, describe, normalize
from multipath_jax.data.description import differences, read_description
from multipath_jax.errors import UserError
from multipath_jax.evaluation.crops import centre_crop
from multipath_jax.evaluation.evaluate import Views, make_evaluator
from multipath_jax.training import checkpoints
from multipath_jax.training.config import read_config
from multipath_jax.training.devices import evaluation_mesh, replicated
from multipath_jax.training.parts import make_model, read_dataset

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
      description: of the data that it was trained on: class names, shape of the images, mean and
        deviation of the pixels.
    """

    workdir: epath.Path
    config: ConfigDict
    step: int
    model: nn.Module
    variables: PyTree
    description: Description

    @cached_property
    def dataset(self) -> Dataset:
        """The whole data set, read when it is first asked for.

        Its images are normalized as in training; they may be other ones (`other_images`).

        Raises:
          UserError: it is gone, or has other classes or images of another shape.
        """
        found = read_dataset(self.config.dataset)
        now = dataclasses.replace(
            self.description, class_names=found.class_names, stored_shape=found.image_shape
        )
        if other := differences(self.description, now):
            raise UserError(
                f"{self.workdir} holds a run of other data than {found.name} now has "
                f"({'; '.join(other.values())}); name the data that it was trained on"
            )
        return dataclasses.replace(found, mean=self.description.mean, std=self.description.std)

    @property
    def other_images(self) -> list[str]:
        """How the images of the data set differ from those of training, in words."""
        other = differences(self.description, describe(self.dataset))
        return [other[key] for key in ("train", "test") if key in other]

    def test(self, limit: int | None = None) -> Split:
        """The test split, or its first images, as the network sees them: their centre crops."""
        split = self.dataset.test
        count = min(limit or len(split), len(split))
        if isinstance(split, EncodedSplit):
            images, labels, _ = split.load(np.arange(count))
        else:
            images, labels = split.images[:count], split.labels[:count]
        return Split(self.crop(images), labels)

    def evaluate(self) -> dict[str, float]:
        """The metrics of the test split (`make_evaluator`), as at the end of training.

        On all devices, each with a part of a batch, whatever those of training were.
        """
        how, mesh = self.config.dataset, evaluation_mesh()
        evaluator = make_evaluator(
            self.model,
            self.dataset,
            self.config.eval_batch_size,
            mesh,
            views=Views(how.crop, how.ten_crop, how.eval_flip),
            workers=how.workers,
        )
        return evaluator(jax.device_put(jax.device_get(self.variables), replicated(mesh)))

    def crop(self, images: Images) -> UInt8[Array | np.ndarray, "b h2 w2 c"]:
        """Images as the data set gives them -> as they are seen: their centres, or the whole."""
        side = self.config.dataset.crop
        return centre_crop(images, side) if side else images

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

    The data set need not be there.

    Args:
      checkpoint: ``"best"`` (the lowest test error), ``"latest"``, or a step.
      dtype: of the computation, in place of the config's: ``"float32"`` or ``"bfloat16"``.

    Raises:
      UserError: the workdir has no such checkpoint or it is damaged, or no readable config or
        description of the data.
    """
    workdir = filesystem.path("workdir", workdir)

    def read(found: checkpoints.Checkpoints, step: int) -> PyTree:
        shapes = {
            key: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
            for key, leaf in found.shapes(step).items()
        }
        return found.restore_weights(traverse_util.unflatten_dict(shapes), step)

    with _quiet():
        checkpoints.open_existing(workdir).close()
        config = read_config(workdir / checkpoints.CONFIG_FILE)
        if dtype is not None:
            config.dtype = dtype
        description = read_description(workdir / checkpoints.DATASET_FILE)
        model = make_model(config, description.num_classes)
        step, weights = checkpoints.read_existing(workdir, checkpoint, read)
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
