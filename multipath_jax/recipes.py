"""The paper's recipes (Sections 6.2 to 6.4) as configs, and one of ours of fewer epochs."""

from ml_collections import ConfigDict

from multipath_jax.config.keys import default_config
from multipath_jax.errors import UserError

# Names of residual networks begin so; every other network follows the plain CNNs' protocol.
RESIDUAL = ("ResNet", "SEResNet", "WRN", "HyperWRN", "BlockDrop", "ConvNet-AIG", "SkipNet")
BOUNDARIES = {200: (80, 150), 350: (150, 250)}  # epochs of training: where the rate falls
DATASETS = ("cifar10", "cifar100")
FAST_EPOCHS = 30
# Networks with a loss of their own in place of the cross-entropy, whose labels stay as they are.
OWN_LOSS = ("BaseCNN-Ensemble", "All-Ensemble", "CapsNet")


def cifar(name: str, epochs: int | None = None, dataset: str = "cifar10") -> ConfigDict:
    """The recipe by which the paper trains a network on CIFAR.

    Args:
      name: as `create_model` knows it; it is not looked up.
      epochs: 200 or 350; None is the protocol's number for this kind of network.
      dataset: cifar10 or cifar100.

    Raises:
      UserError: other epochs, another data set.
    """
    residual = name.startswith(RESIDUAL)
    epochs = epochs or (350 if residual else 200)
    if epochs not in BOUNDARIES or dataset not in DATASETS:
        raise UserError(
            f"the paper trains for {' or '.join(map(str, BOUNDARIES))} epochs on "
            f"{' or '.join(DATASETS)}, not for {epochs} on {dataset}"
        )
    config = default_config()
    config.model.name = name
    config.dataset.name = dataset
    config.dataset.shift = 4
    config.dataset.flip = True
    config.batch_size = 64 if residual else 128
    config.train_for = f"{epochs} epochs"
    config.schedule.learning_rate = 0.1
    config.schedule.boundaries = ", ".join(f"{epoch} epochs" for epoch in BOUNDARIES[epochs])
    # The paper names no weight decay; these are customary.
    config.optimizer.weight_decay = 1e-4 if residual else 5e-4
    return config


def fast(name: str, epochs: int = FAST_EPOCHS, dataset: str = "cifar10") -> ConfigDict:
    """A recipe of ours that trains the paper's CIFAR networks, unchanged, in fewer epochs.

    Its values are the field's customary ones; none has been tuned yet.

    Args:
      name: as `create_model` knows it; it is not looked up.
      epochs: of training; at least 3, since the warm-up takes 2.
      dataset: cifar10 or cifar100.

    Raises:
      UserError: fewer epochs, another data set.
    """
    if epochs < 3 or dataset not in DATASETS:
        raise UserError(
            f"the fast recipe trains for at least 3 epochs on {' or '.join(DATASETS)}, "
            f"not for {epochs} on {dataset}"
        )
    config = default_config()
    config.model.name = name
    config.dataset.name = dataset
    config.dataset.shift = 4
    config.dataset.shift_mode = "reflect"
    config.dataset.flip = True
    config.dataset.alternate_flip = True
    config.dataset.eval_flip = True
    config.batch_size = 128
    config.train_for = f"{epochs} epochs"
    config.schedule.kind = "linear"
    config.schedule.learning_rate = 0.1
    config.schedule.warmup = "2 epochs"
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 5e-4
    config.label_smoothing = 0.0 if name in OWN_LOSS else 0.1
    config.ema = 0.998
    return config


def digits() -> ConfigDict:
    """BaseCNN-2-CC on scikit-learn's handwritten digits: a recipe of ours to begin with."""
    config = default_config()
    config.model.name = "BaseCNN-2-CC"
    config.dataset.name = "digits"
    config.dataset.shift = 1  # of 8 pixels; digits have no mirror images
    config.batch_size = 64
    config.train_for = "15 epochs"
    config.schedule.learning_rate = 0.05
    config.schedule.boundaries = "9 epochs, 13 epochs"
    return config


def imagenet(name: str, subset: bool = False) -> ConfigDict:
    """The recipe by which the paper trains a network on ILSVRC2012 (Section 6.4).

    Args:
      name: as `create_model` knows it; it is not looked up.
      subset: whether on the first 100 classes, for 90 epochs rather than 120.
    """
    config = default_config()
    config.model.name = name
    config.dataset.name = "imagenet256/subset100" if subset else "imagenet256"
    config.dataset.size = 256
    config.dataset.crop = 224
    config.dataset.flip = True
    config.dataset.ten_crop = True
    config.batch_size = 256
    epochs = 90 if subset else 120
    config.train_for = f"{epochs} epochs"
    config.schedule.learning_rate = 0.1
    config.schedule.boundaries = ", ".join(f"{epoch} epochs" for epoch in range(30, epochs, 30))
    config.optimizer.weight_decay = 1e-4  # the paper names none; this is customary
    return config
