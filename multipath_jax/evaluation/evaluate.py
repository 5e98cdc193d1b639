"""Loss and errors over a whole split, exact for any batch size, in one dispatch."""

from collections.abc import Callable
from functools import partial

import jax
import optax
from jax.sharding import Mesh
from jaxtyping import PyTree

from multipath_jax.data import Dataset, EvalBatches, Split, eval_batches, normalize, place
from multipath_jax.training.devices import replicated, round_up, split_batch
from multipath_jax.training.metrics import EvalMetrics, is_wrong, is_wrong_among
from multipath_jax.training.placement import Network

Evaluator = Callable[[PyTree], dict[str, float]]


def make_evaluator(
    model: Network, dataset: Dataset, batch_size: int, mesh: Mesh, split: Split | None = None
) -> Evaluator:
    """Puts a split (the test split) on the devices; gives ``variables -> metrics``.

    The metrics are ``loss``, the mean cross-entropy of the logits; ``error``, the top-1 error in
    percent; and, of more than five classes, ``top5_error``.

    Args:
      batch_size: rounded up to a multiple of the devices, and no larger than the split needs.
    """
    split = split or dataset.test
    batch_size = round_up(min(batch_size, len(split.labels)), mesh)
    batches = jax.jit(
        partial(eval_batches, batch_size=batch_size), out_shardings=split_batch(mesh, axis=1)
    )(place(split, replicated(mesh)))
    measure = jax.jit(partial(evaluate, model, dataset), out_shardings=replicated(mesh))

    def evaluator(variables: PyTree) -> dict[str, float]:
        found = jax.device_get(measure(variables, batches)).compute()
        values = {"loss": float(found["loss"]), "error": 100 * float(found["error"])}
        if dataset.num_classes > 5:
            values["top5_error"] = 100 * float(found["top5_error"])
        return values

    return evaluator


def evaluate(
    model: Network, dataset: Dataset, variables: PyTree, batches: EvalBatches
) -> EvalMetrics:
    """The metrics of all batches, as a pure function; what the masks leave out does not count."""

    def add(metrics: EvalMetrics, batch: EvalBatches) -> tuple[EvalMetrics, None]:
        images = normalize(batch.images, dataset.mean, dataset.std)
        logits = model.apply(variables, images, train=False)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
        update = EvalMetrics.single_from_model_output(
            loss=loss,
            wrong=is_wrong(logits, batch.labels),
            wrong5=is_wrong_among(logits, batch.labels, 5),
            mask=batch.mask,
        )
        return metrics.merge(update), None

    # A loop on the device, on CPUs too: forward convolutions are as fast there as outside.
    return jax.lax.scan(add, EvalMetrics.empty(), batches)[0]
