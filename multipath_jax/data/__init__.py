"""Data: TFDS sets in host memory, then on the device, augmented there."""

from multipath_jax.data.augment import augment, normalize, random_flip, random_shift
from multipath_jax.data.datasets import Dataset, Split, load_dataset, pixel_statistics
from multipath_jax.data.description import Description, describe
from multipath_jax.data.resident import (
    EvalBatches,
    ResidentData,
    batch_at,
    batches_per_epoch,
    epoch_order,
    eval_batches,
    place,
)

__all__ = [
    "Dataset",
    "Description",
    "EvalBatches",
    "ResidentData",
    "Split",
    "augment",
    "batch_at",
    "batches_per_epoch",
    "describe",
    "epoch_order",
    "eval_batches",
    "load_dataset",
    "normalize",
    "pixel_statistics",
    "place",
    "random_flip",
    "random_shift",
]
