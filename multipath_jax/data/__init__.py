"""Image data sets from TFDS, folders or arrays, in memory or encoded, and their augmentation."""

from multipath_jax.data.arrays import from_arrays
from multipath_jax.data.augment import (
    MixedLabels,
    alternately_mirrored,
    augment,
    cutout,
    mix,
    normalize,
    random_crop,
    random_erase,
    random_flip,
    random_shift,
)
from multipath_jax.data.datasets import (
    Dataset,
    Split,
    load_dataset,
    open_encoded,
    pixel_statistics,
)
from multipath_jax.data.description import Description, describe
from multipath_jax.data.encoded import EncodedSplit
from multipath_jax.data.resident import (
    EvalBatches,
    ResidentData,
    batch_at,
    batches_per_epoch,
    epoch_order,
    eval_batches,
    place,
)
from multipath_jax.data.trivial_augment import trivial_augment

__all__ = [
    "Dataset",
    "Description",
    "EncodedSplit",
    "EvalBatches",
    "MixedLabels",
    "ResidentData",
    "Split",
    "alternately_mirrored",
    "augment",
    "batch_at",
    "batches_per_epoch",
    "cutout",
    "describe",
    "epoch_order",
    "eval_batches",
    "from_arrays",
    "load_dataset",
    "mix",
    "normalize",
    "open_encoded",
    "pixel_statistics",
    "place",
    "random_crop",
    "random_erase",
    "random_flip",
    "random_shift",
    "trivial_augment",
]
