"""Loading a trained network from its workdir.

run = multipath_jax.load_run("runs/digits")
logits = run.logits(images)  # uint8 [b h w c], of the run's image_shape -> float32 [b classes]
"""

import dataclasses
import os
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx, traverse_util
from jaxtyping import Array, Float, Int, Num, PyTree
from ml_collections import ConfigDict

from multipath_jax import checkpoints
from multipath_jax.config.keys import CHOICES, OWN, read_config
from multipath_jax.data import (
    Dataset,
    Description,
    EncodedSplit,
    Split,
    describe,
    normalize,
)
from multipath_jax.data.datasets import HELD_OUT
from multipath_jax.data.description import differences, read_description
from multipath_jax.errors import UserError
from multipath_jax.evaluation.crops import center_crop
from multipath_jax.evaluation.evaluate import Views, make_evaluator
from multipath_jax.layers import OwnStatistics
from multipath_jax.layers.own_statistics import of_set
from multipath_jax.metrics_file import SPLITS, read_metrics
from multipath_jax.models.adapter import adapt
from multipath_jax.parallel.devices import evaluation_mesh, replicated
from multipath_jax.training.setup import make_model, read_dataset
from multipath_jax.utils import cli, filesystem

Images = Num[Array, "b h w c"] | Num[np.ndarray, "b h w c"]


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedRun:
    """A trained network with its config and the description of its data.

    Attributes:
      workdir: the workdir of the run.
      config: the config that it was trained with.
      step: the step of the checkpoint.
      model: the network; ``model.apply(variables, prepare(images), train=False)`` gives the logits.
      variables: its parameters and other collections, on the first device.
      description: metadata of the training data: class names, shape of the images, mean and
        standard deviation of the pixels.
      given: the data set passed to `load_run`; None if the config names it.
      number: the number of the data set, if the run is one `head` of several; otherwise None.
    """

    workdir: epath.Path
    config: ConfigDict
    step: int
    model: nn.Module
    variables: PyTree
    description: Description
    given: Dataset | None = None
    number: int | None = None

    def head(
        self, name: str | None = None, model: nn.Module | nnx.Module | None = None
    ) -> "LoadedRun":
        """The network for one of several data sets, as a run on this data set alone.

        Its logits, classes, normalization and test images are those of the data set. A run on
        several data sets can itself only be evaluated.

        Args:
          name: the data set; None for a run on one data set, which is returned as it is.
          model: the network for the classes of this data set, if the network was passed to
            `Trainer(model=...)`.

        Raises:
          UserError: there is no such head, or the name or the network is missing.
        """
        heads = self.description.heads
        if heads is None and name is None:
            return self
        if heads is None:
            raise UserError(
                f"there is no head {name!r}: the run in {self.workdir} is on one data set, "
                f"{self.description.name}; leave the head out"
            )
        if name not in heads.names:
            what = "a head must be chosen" if name is None else f"there is no head {name!r}"
            raise UserError(
                f"{what}: the run in {self.workdir} has {', '.join(heads.names)} (--head=NAME, or "
                "run.head(NAME) in Python)"
            )
        number = heads.names.index(name)
        description = self.description.parts[number]
        if model is None:
            _check_named(self.workdir, self.config, "head(NAME, model=...)")
            model = make_model(self.config, description.num_classes)
        model = adapt(model)
        variables = _of_head(self, model, number)
        _check_fits(model, variables, description.image_shape)
        return dataclasses.replace(
            self, model=model, variables=variables, description=description, number=number
        )

    def on_test_split(self) -> "LoadedRun":
        """The run with the test split of its data set, if it held out training images.

        In place of the ``config.dataset.holdout`` training images on which it was evaluated so far:
        for one measurement of what was chosen on them.

        Raises:
          UserError: the data set passed to `load_run` has held-out images as its test split.
        """
        if self.given is not None and self.given.evaluated == HELD_OUT:
            raise UserError(
                f"the data set {self.given.name} passed to load_run(dataset=...) has held-out "
                "images in place of its test split; pass one with the test split"
            )
        config = self.config.copy_and_resolve_references()
        config.dataset.holdout = 0
        return dataclasses.replace(self, config=config)

    @cached_property
    def dataset(self) -> Dataset:
        """The whole data set, read on first access.

        Its mean and standard deviation are those of training. The images may differ from those of
        training (`other_images`).

        Raises:
          UserError: the data set is missing, or has other classes or images of another shape.
        """
        if self.given is None and self.config.dataset.name.startswith(OWN):
            raise UserError(
                f"the data of {self.workdir} were passed to Trainer(dataset=...); pass them to "
                "load_run(workdir, dataset=...) in Python too"
            )
        found = self.given or read_dataset(self.config.dataset)
        if self.number is not None and found.parts:
            found = _part(found, self.description.name)
        now = dataclasses.replace(
            self.description, class_names=found.class_names, stored_shape=found.image_shape
        )
        if other := differences(self.description, now):
            raise UserError(
                f"the run in {self.workdir} was trained on other data than {found.name} now has "
                f"({'; '.join(other.values())}); use the data that it was trained on"
            )
        return _normalized(found, self.description)

    @property
    def other_images(self) -> list[str]:
        """Phrases that say how the data set's images differ from those of training."""
        other = differences(self.description, describe(self.dataset))
        return [other[key] for key in ("train", "test") if key in other]

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``; of a `head`, with its evaluation in place of that of all.

        Returns:
          The lines, as dictionaries.
        """
        lines = read_metrics(self.workdir)
        if self.number is None:
            return lines
        prefixes = {f"{split}/{self.description.name}/": f"{split}/" for split in SPLITS}
        return [
            line
            | {
                key.replace(prefix, whole, 1): value
                for prefix, whole in prefixes.items()
                for key, value in line.items()
                if key.startswith(prefix)
            }
            for line in lines
        ]

    def test(self, limit: int | None = None) -> Split:
        """The center crops of the test split.

        Args:
          limit: if given, only this many images, the first ones.

        Returns:
          The images, as `logits` takes them, and their labels.

        Raises:
          UserError: the limit is less than one.
        """
        if limit is not None and limit < 1:
            raise UserError(f"limit={limit} must be at least 1, or None for all images")
        return self._test(slice(limit))

    def test_images(self, numbers: Int[np.ndarray, " b"]) -> Split:
        """The center crops of some images of the test split.

        Args:
          numbers: the numbers of the images, counted from zero, ``[b]``.

        Returns:
          The images, as `logits` takes them, and their labels.
        """
        return self._test(numbers)

    def _test(self, chosen: slice | Int[np.ndarray, " b"]) -> Split:
        split = self.dataset.test
        if isinstance(split, EncodedSplit):
            images, labels = split.load(np.arange(len(split))[chosen])
        else:
            images, labels = split.images[chosen], split.labels[chosen]
        return Split(self.crop(images), labels)

    def evaluate(self) -> dict[str, float]:
        """Evaluates the network on the test split, as at the end of training.

        Uses all devices, with batches sharded over them.

        Returns:
          The metrics: ``loss``, ``error`` in percent, and others (see `make_evaluator`).
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
        """Crops stored images as in evaluation: to their center, or not at all.

        Args:
          images: images as stored, ``[b h w c]``.

        Returns:
          Images of the run's ``image_shape``, ``[b h2 w2 c]``.
        """
        side = self.config.dataset.crop
        return center_crop(images, side) if side else images

    def prepare(self, images: Images) -> Float[Array, "b h w c"]:
        """Normalizes cropped images as in training.

        Args:
          images: uint8 or float32 ``[b h w c]``, of the run's ``image_shape``.

        Returns:
          The input of the network, float32 ``[b h w c]``.

        Raises:
          UserError: the run is on several data sets, and no `head` was chosen; the images are not
            ``[b h w c]`` with the channels of the run's; or the pixels are integers but not uint8,
            or uint8 but the run is on float32.
        """
        description, images = self.head().description, jnp.asarray(images)
        channels = description.image_shape[-1]
        if images.ndim != 4 or images.shape[-1] != channels:
            raise UserError(
                f"the run in {self.workdir} is on images [b h w {channels}], got the shape "
                f"{images.shape}; pass images of that shape, such as image[None] for one"
            )
        if not jnp.issubdtype(images.dtype, jnp.floating) and images.dtype != description.dtype:
            raise UserError(
                f"the run in {self.workdir} is on {description.dtype} pixels, got {images.dtype}; "
                f"pass images of type {description.dtype}, scaled as those of training"
            )
        return normalize(images, description.mean, description.std)

    def forward(self, variables: PyTree, images: Images) -> Float[Array, "b classes"]:
        """The logits for given variables: a pure function, for JAX transformations.

        Args:
          variables: as the attribute ``variables``.
          images: as in `prepare`.

        Returns:
          The logits, ``[b classes]``.
        """
        return self.model.apply(variables, self.prepare(images), train=False)

    def logits(self, images: Images) -> Float[Array, "b classes"]:
        """The logits of images; compiled once for every batch size.

        Args:
          images: as in `prepare`.

        Returns:
          The logits, ``[b classes]``.
        """
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
    """Loads a trained network from its workdir, which is not changed.

    The data set is not needed.

    Args:
      workdir: the workdir of the run, a path or an address such as ``gs://bucket/run``.
      checkpoint: ``"best"`` (lowest test error), ``"latest"``, or a step.
      dtype: overrides the type of the computation: ``"float32"``, ``"bfloat16"`` or ``"auto"``; not
        together with ``model``.
      model: the network, if it was passed to `Trainer(model=...)`.
      dataset: the data set, if it was passed to `Trainer(dataset=...)`; only needed to evaluate.

    Returns:
      The run.

    Raises:
      UserError: the workdir has no such checkpoint, no readable config or no description of the
        data, the checkpoint is damaged, ``model`` is not the network that was trained, ``dtype`` is
        none of these types, or both ``dtype`` and ``model`` are given.
    """
    if dtype is not None and dtype not in CHOICES["dtype"]:
        raise UserError(f"dtype={dtype!r} must be one of {', '.join(CHOICES['dtype'])}")
    if dtype is not None and model is not None:
        raise UserError(
            f"dtype={dtype} cannot be used with model=, whose layers have their own; remove it"
        )
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
            _check_named(workdir, config, "load_run(workdir, model=...)")
            model = make_model(config, description.num_classes)
        model = adapt(model)
        if config.dataset.own_statistics:
            model = OwnStatistics(model, len(description.parts))
        step, weights = checkpoints.read_existing(workdir, checkpoint, read)
    _check_fits(model, weights, description.image_shape)
    return LoadedRun(workdir, config, step, model, jax.device_put(weights), description, dataset)


def _check_named(workdir: epath.Path, config: ConfigDict, call: str) -> None:
    """Raises UserError if the network was passed to `Trainer`, so that no name identifies it."""
    if config.model.name.startswith(OWN):
        raise UserError(
            f"the network of {workdir}, {config.model.name.removeprefix(OWN)}, was passed to "
            f"Trainer(model=...); pass it to {call} in Python too"
        )


def _part(dataset: Dataset, name: str) -> Dataset:
    """The one of several data sets that has this name. Raises UserError if there is none."""
    for part in dataset.parts:
        if part.name == name:
            return part
    raise UserError(
        f"the data set {dataset.name} passed to load_run(dataset=...) has no part {name}; pass the "
        "data that the run was trained on"
    )


def _normalized(dataset: Dataset, description: Description) -> Dataset:
    """The data set with the mean and deviation of training."""
    described = zip(dataset.parts, description.parts, strict=True)
    return dataclasses.replace(
        dataset,
        mean=description.mean,
        std=description.std,
        parts=tuple(_normalized(part, one) for part, one in described),
    )


def _of_head(run: LoadedRun, model: nn.Module, number: int) -> PyTree:
    """The variables of a network for one of several data sets: of the last layer, its columns.

    Args:
      run: the run on several data sets.
      model: the network for the classes of this one.
      number: its number.
    """
    heads = run.description.heads
    total, own = sum(heads.sizes), heads.sizes[number]
    expected = _shapes(model, run.description.image_shape)

    def narrowed(key: tuple[str, ...], leaf: Array) -> Array:
        wanted = expected.get(key, leaf.shape)
        is_last = leaf.shape[-1:] == (total,) and wanted == (*leaf.shape[:-1], own)
        return leaf[..., heads.columns(number)] if is_last else leaf

    flat = traverse_util.flatten_dict(of_set(run.variables, number))
    return traverse_util.unflatten_dict({key: narrowed(key, leaf) for key, leaf in flat.items()})


def _shapes(model: nn.Module, image_shape: tuple[int, int, int]) -> dict[tuple[str, ...], tuple]:
    """The shapes of the variables of a network, by path."""
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)
    variables = nn.meta.unbox(variables)
    return {key: leaf.shape for key, leaf in traverse_util.flatten_dict(variables).items()}


def _check_fits(model: nn.Module, weights: PyTree, image_shape: tuple[int, int, int]) -> None:
    """Raises UserError unless the weights have the names and shapes of the network's."""
    shapes = _shapes(model, image_shape)
    expected = {"/".join(key): shape for key, shape in shapes.items() if key[0] in weights}
    flat = traverse_util.flatten_dict(weights)
    found = {"/".join(key): leaf.shape for key, leaf in flat.items()}
    if other := sorted(key for key in {*expected, *found} if expected.get(key) != found.get(key)):
        key = other[0]
        raise UserError(
            f"{type(model).__name__} is not the network that was trained: {len(other)} of its "
            f"arrays differ, such as {key}, {found.get(key, 'none')} in the checkpoint and "
            f"{expected.get(key, 'none')} in the network"
        )
