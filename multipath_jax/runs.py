"""A trained network by its workdir, for whatever comes after training.

run = multipath_jax.load_run("runs/digits")
logits = run.logits(images)  # uint8 [b h w c], of the run's image_shape -> float32 [b classes]
"""

import dataclasses
import os
from collections.abc import Callable
from functools import cached_property, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx, traverse_util
from jaxtyping import Array, Float, Num, PyTree
from ml_collections import ConfigDict

from multipath_jax import checkpoints
from multipath_jax.config.keys import OWN, read_config
from multipath_jax.data import Dataset, Description, EncodedSplit, Split, describe, normalize
from multipath_jax.data.description import differences, read_description
from multipath_jax.errors import UserError
from multipath_jax.evaluation.crops import center_crop
from multipath_jax.evaluation.evaluate import Views, make_evaluator
from multipath_jax.models.adapter import adapt
from multipath_jax.parallel.devices import evaluation_mesh, replicated
from multipath_jax.training.setup import make_model, read_dataset
from multipath_jax.utils import cli, filesystem

Images = Num[Array, "b h w c"] | Num[np.ndarray, "b h w c"]


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
      given: the data set that `Trainer` was given, if it was.
    """

    workdir: epath.Path
    config: ConfigDict
    step: int
    model: nn.Module
    variables: PyTree
    description: Description
    given: Dataset | None = None

    @cached_property
    def dataset(self) -> Dataset:
        """The whole data set, read when it is first asked for.

        Its images are normalized as in training; they may be other ones (`other_images`).

        Raises:
          UserError: it is gone, or has other classes or images of another shape.
        """
        if self.given is None and self.config.dataset.name.startswith(OWN):
            raise UserError(
                f"the data of {self.workdir} were given to Trainer(dataset=...); give them to "
                "load_run(workdir, dataset=...) in Python too"
            )
        found = self.given or read_dataset(self.config.dataset)
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
        """The test split, or its first images, as the network sees them: their center crops."""
        split = self.dataset.test
        count = min(limit or len(split), len(split))
        if isinstance(split, EncodedSplit):
            images, labels = split.load(np.arange(count))
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

    def crop(self, images: Images) -> Num[Array | np.ndarray, "b h2 w2 c"]:
        """Images as the data set gives them -> as they are seen: their centres, or the whole."""
        side = self.config.dataset.crop
        return center_crop(images, side) if side else images

    def prepare(self, images: Images) -> Float[Array, "b h w c"]:
        """Images as they are seen -> the network's input, as in evaluation."""
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
    workdir: str | os.PathLike,
    checkpoint: str | int = "best",
    dtype: str | None = None,
    *,
    model: nn.Module | nnx.Module | None = None,
    dataset: Dataset | None = None,
) -> LoadedRun:
    """The network that was trained in a workdir; nothing there is changed.

    The data set need not be there.

    Args:
      checkpoint: ``"best"`` (the lowest test error), ``"latest"``, or a step.
      dtype: of the computation, in place of the config's: ``"float32"`` or ``"bfloat16"``.
      model: the network, of a run whose `Trainer` was given one.
      dataset: its data, of a run whose `Trainer` was given them; needed to evaluate it again.

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

    with cli.quiet_logs():
        checkpoints.open_existing(workdir).close()
        config = read_config(workdir / checkpoints.CONFIG_FILE)
        if dtype is not None:
            config.dtype = dtype
        description = read_description(workdir / checkpoints.DATASET_FILE)
        if model is None:
            _check_named(workdir, config)
            model = make_model(config, description.num_classes)
        model = adapt(model)
        step, weights = checkpoints.read_existing(workdir, checkpoint, read)
    _check_fits(model, weights, description.image_shape)
    return LoadedRun(workdir, config, step, model, jax.device_put(weights), description, dataset)


def _check_named(workdir: epath.Path, config: ConfigDict) -> None:
    """Raises UserError if the network is none that a config can name."""
    if config.model.name.startswith(OWN):
        raise UserError(
            f"the network of {workdir}, {config.model.name.removeprefix(OWN)}, was given to "
            "Trainer(model=...); give it to load_run(workdir, model=...) in Python too"
        )


def _check_fits(model: nn.Module, weights: PyTree, image_shape: tuple[int, int, int]) -> None:
    """Raises UserError unless the weights are those of the network."""
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)
    expected, found = (
        {"/".join(key): leaf.shape for key, leaf in traverse_util.flatten_dict(tree).items()}
        for tree in ({name: variables[name] for name in weights if name in variables}, weights)
    )
    if other := sorted(key for key in {*expected, *found} if expected.get(key) != found.get(key)):
        key = other[0]
        raise UserError(
            f"{type(model).__name__} is not the network that was trained: {len(other)} of its "
            f"arrays differ, such as {key}, {found.get(key, 'none')} in the checkpoint and "
            f"{expected.get(key, 'none')} in the network"
        )
