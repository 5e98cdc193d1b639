"""The paper's recipes (Sections 6.2 to 6.4) as configs."""

from ml_collections import ConfigDict

from multipath_jax.errors import UserError
from multipath_jax.training.config import default_config

# Names of residual networks begin so; every other network follows the plain CNNs' protocol.
RESIDUAL = ("ResNet", "SEResNet", "WRN", "HyperWRN", "BlockDrop", "ConvNet-AIG", "SkipNet")
DROPS = {200: (80, 150), 350: (150, 250)}  # epochs of training: epochs before which the rate falls
DATASETS = ("cifar10", "cifar100")


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
    if epochs not in DROPS or dataset not in DATASETS:
        raise UserError(
            f"the paper trains for {' or '.join(map(str, DROPS))} epochs on "
            f"{' or '.join(DATASETS)}, not for {epochs} on {dataset}"
        )
    config = default_config()
    config.model.name = name
    config.dataset.name = dataset
    config.dataset.shift = 4
    config.dataset.flip = True
    config.batch_size = 64 if residual else 128
    config.train_for = f"{epochs} epochs"
    config.schedule.rate = 0.1
    config.schedule.drops = ", ".join(f"{drop} epochs" for drop in DROPS[epochs])
    # The paper names no weight decay; these are customary.
    config.optimizer.weight_decay = 1e-4 if residual else 5e-4
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
    config.schedule.rate = 0.1
    config.schedule.drops = ", ".join(f"{drop} epochs" for drop in range(30, epochs, 30))
    config.optimizer.weight_decay = 1e-4  # the paper names none; this is customary
    return config
