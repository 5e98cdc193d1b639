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
from multipath_jax.data.heads import Heads
from multipath_jax.data.order import epoch_order
from multipath_jax.data.resident import (
    EvalBatches,
    ResidentData,
    batch_at,
    batches_per_epoch,
    eval_batches,
    place,
)
from multipath_jax.data.several import brought_to, join, load_several
from multipath_jax.data.trivial_augment import trivial_augment

__all__ = [
    "Dataset",
    "Description",
    "EncodedSplit",
    "EvalBatches",
    "Heads",
    "MixedLabels",
    "ResidentData",
    "Split",
    "alternately_mirrored",
    "augment",
    "batch_at",
    "batches_per_epoch",
    "brought_to",
    "cutout",
    "describe",
    "epoch_order",
    "eval_batches",
    "from_arrays",
    "join",
    "load_dataset",
    "load_several",
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
