"""The paper's recipes (Sections 6.2 and 6.3) as configs."""

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
