"""Loss and errors over a whole split; the result does not depend on the batch size."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Num, PyTree

from multipath_jax.data import (
    Dataset,
    EncodedSplit,
    EvalBatches,
    Heads,
    Split,
    eval_batches,
    normalize,
    place,
)
from multipath_jax.evaluation.crops import (
    center_crop,
    mirrored_log_probabilities,
    ten_crop_log_probabilities,
)
from multipath_jax.evaluation.metrics import EvalMetrics, is_wrong, is_wrong_among
from multipath_jax.layers.own_statistics import of_set
from multipath_jax.parallel.devices import (
    from_rows,
    own_rows,
    replicated,
    round_up,
    split_batch,
)
from multipath_jax.parallel.placement import Network
from multipath_jax.utils import progress

Evaluator = Callable[[PyTree], dict[str, float]]
# (variables, stored images) -> logits or log-probabilities.
Predict = Callable[[PyTree, Num[Array, "b h w c"]], Float[Array, "b classes"]]


class Views(NamedTuple):
    """Which crops of each image are evaluated.

    Attributes:
      crop: side of the crops in pixels; 0: the whole image.
      ten: whether to evaluate ten crops in addition to the center crop.
      flip: whether to evaluate the center crop averaged with its mirror image, in addition.
    """

    crop: int = 0
    ten: bool = False
    flip: bool = False


WHOLE = Views()


class EvalBatch(NamedTuple):
    """A batch of examples.

    Attributes:
      images: ``[b h w c]``, as stored.
      labels: ``[b]``.
      mask: ``[b]``, False for padding, which is not counted.
    """

    images: Num[Array, "b h w c"]
    labels: Int[Array, " b"]
    mask: Bool[Array, " b"]


@dataclasses.dataclass(frozen=True)
class OneHead:
    """A network for several data sets as the network of one of them.

    Attributes:
      network: the network.
      heads: its heads.
      number: the number of the data set.
    """

    network: Network
    heads: Heads
    number: int

    def apply(self, variables: PyTree, images: Array, **options: Any) -> Float[Array, "b classes"]:
        """The logits of the data set's head."""
        logits = self.network.apply(of_set(variables, self.number), images, **options)
        return logits[:, self.heads.columns(self.number)]


def make_evaluator(
    model: Network,
    dataset: Dataset,
    batch_size: int,
    mesh: Mesh,
    split: Split | EncodedSplit | None = None,
    views: Views = WHOLE,
    workers: int = 0,
) -> Evaluator:
    """Makes a function ``variables -> metrics`` that evaluates a network on a split.

    The metrics are ``loss``, the mean cross-entropy of the logits; ``error``, the top-1 error in
    percent; ``top5_error`` if there are more than five classes; ``ten_crop_error`` and
    ``ten_crop_top5_error`` with ten crops; ``flip_error`` and ``flip_top5_error`` with mirror
    images. A split in memory is placed on the devices and evaluated in one dispatch.

    For several data sets, these are means over all images, each in its own head; the metrics of a
    data set are named like ``cifar10/error``.

    Args:
      model: the network.
      dataset: gives the normalization, the number of classes and the default split.
      batch_size: rounded up to a multiple of the devices, and limited to the size of the split.
      mesh: the devices to use.
      split: the split to evaluate, of one data set; None is the test split, or those of several.
      views: which crops are evaluated.
      workers: processes that decode an encoded split.

    Returns:
      The function; its values are Python floats.
    """
    if dataset.parts:
        each = {
            part.name: make_evaluator(
                OneHead(model, dataset.heads, number), part, batch_size, mesh, None, views, workers
            )
            for number, part in enumerate(dataset.parts)
        }
        return partial(_evaluated_each, each, [len(part.test) for part in dataset.parts])
    split = split or dataset.test
    batch_size = round_up(min(batch_size, len(split)), mesh)
    predictions = make_predictions(model, dataset, views)
    if isinstance(split, EncodedSplit):
        measure = _over_encoded(predictions, split, batch_size, mesh, workers)
    else:
        measure = _over_resident(predictions, split, batch_size, mesh)

    def evaluator(variables: PyTree) -> dict[str, float]:
        with progress.at_work("evaluating"):
            measured = measure(variables)
        found = {name: metrics.compute() for name, metrics in measured.items()}
        values = {"loss": float(found[""]["loss"])}
        kinds = ("error", "top5_error") if dataset.num_classes > 5 else ("error",)
        errors = {f"{n}{kind}": found[n][kind] for n in found for kind in kinds}
        return values | {name: 100 * float(value) for name, value in errors.items()}

    return evaluator


def _evaluated_each(
    each: Mapping[str, Evaluator], sizes: list[int], variables: PyTree
) -> dict[str, float]:
    """The metrics of several data sets: means over all images, then those of each data set."""
    found = {name: evaluator(variables) for name, evaluator in each.items()}
    first, *others = found.values()
    means = {
        key: float(np.average([values[key] for values in found.values()], weights=sizes))
        for key in first
        if all(key in values for values in others)
    }
    own = {
        f"{name}/{key}": value for name, values in found.items() for key, value in values.items()
    }
    return means | own


def make_predictions(model: Network, dataset: Dataset, views: Views) -> dict[str, Predict]:
    """The functions that classify images, by the prefix of their metrics' names."""

    def logits(variables, images):
        normal = normalize(images, dataset.mean, dataset.std)
        return model.apply(variables, normal, train=False)

    def center(images):
        return center_crop(images, views.crop) if views.crop else images

    def single(variables, images):
        return logits(variables, center(images))

    def ten(variables, images):
        return ten_crop_log_probabilities(partial(logits, variables), images, views.crop)

    def flip(variables, images):
        return mirrored_log_probabilities(partial(logits, variables), center(images))

    others = {"ten_crop_": ten} if views.ten else {}
    return {"": single} | others | ({"flip_": flip} if views.flip else {})


def _empty_metrics(predictions: Mapping[str, Predict]) -> dict[str, EvalMetrics]:
    return {name: EvalMetrics.empty() for name in predictions}


def _add(
    predictions: Mapping[str, Predict],
    variables: PyTree,
    metrics: dict[str, EvalMetrics],
    batch: EvalBatch,
) -> dict[str, EvalMetrics]:
    """Merges the metrics of another batch into ``metrics``; a pure function."""

    def measured(predict: Predict) -> EvalMetrics:
        logits = predict(variables, batch.images)
        return EvalMetrics.single_from_model_output(
            loss=optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels),
            wrong=is_wrong(logits, batch.labels),
            wrong5=is_wrong_among(logits, batch.labels, 5),
            mask=batch.mask,
        )

    merged = {name: metrics[name].merge(measured(predictions[name])) for name in metrics}
    # With JAX_ENABLE_X64 counts are int64, and the carry of a scan must keep its types.
    return jax.tree.map(lambda before, after: after.astype(before.dtype), metrics, merged)


def _over_resident(
    predictions: Mapping[str, Predict], split: Split, batch_size: int, mesh: Mesh
) -> Callable[[PyTree], dict[str, EvalMetrics]]:
    """Makes an evaluation function with one dispatch over data on the devices."""
    batches = jax.jit(
        partial(eval_batches, batch_size=batch_size), out_shardings=split_batch(mesh, axis=1)
    )(place(split, replicated(mesh)))

    def scan(variables: PyTree, batches: EvalBatches) -> dict[str, EvalMetrics]:
        def add(metrics, batch):
            return _add(predictions, variables, metrics, EvalBatch(*batch)), None

        # A loop on CPUs too: forward convolutions, unlike their gradients, are as fast inside.
        return jax.lax.scan(add, _empty_metrics(predictions), batches)[0]

    measure = jax.jit(scan, out_shardings=replicated(mesh))
    return lambda variables: jax.device_get(measure(variables, batches))


def _over_encoded(
    predictions: Mapping[str, Predict],
    split: EncodedSplit,
    batch_size: int,
    mesh: Mesh,
    workers: int,
) -> Callable[[PyTree], dict[str, EvalMetrics]]:
    """Makes an evaluation function that decodes the split while the devices compute."""
    from multipath_jax.data.loader import evaluation_batches  # importing Grain takes 0.3 s

    where = split_batch(mesh)
    rows = own_rows(where, batch_size)

    def add(variables, metrics, first, images, labels):
        mask = first + jnp.arange(batch_size) < len(split)
        return _add(predictions, variables, metrics, EvalBatch(images, labels, mask))

    add = jax.jit(add, out_shardings=replicated(mesh))

    empty = jax.jit(partial(_empty_metrics, predictions), out_shardings=replicated(mesh))

    def measure(variables: PyTree) -> dict[str, EvalMetrics]:
        metrics = empty()
        with evaluation_batches(split, batch_size, workers, rows) as batches:
            for number, (images, labels) in enumerate(batches):
                sent = (from_rows(a, rows, batch_size, where) for a in (images, labels))
                before = metrics
                metrics = add(variables, metrics, np.int32(number * batch_size), *sent)
                jax.block_until_ready(before)  # limits the number of batches in device memory
        return jax.device_get(metrics)

    return measure
