"""Training recipes as configs: the paper's (Sections 6.2 to 6.4) and others of this repository."""

from ml_collections import ConfigDict

from multipath_jax.config.keys import FOLDER, NEEDED, default_config
from multipath_jax.errors import UserError
from multipath_jax.models.registry import family_of

# Prefixes of the names of residual networks; every other network uses the plain CNNs' recipe.
RESIDUAL = ("ResNet", "SEResNet", "WRN", "HyperWRN", "BlockDrop", "ConvNet-AIG", "SkipNet")
BOUNDARIES = {200: (80, 150), 350: (150, 250)}  # number of epochs: those after which the rate drops
DATASETS = ("cifar10", "cifar100")
FAST_EPOCHS = 10
# Of the pixels in [0, 1], by which weights for ImageNet are nearly always trained.
IMAGENET_MEAN, IMAGENET_STD = "0.485, 0.456, 0.406", "0.229, 0.224, 0.225"
# Networks that define their own loss instead of the cross-entropy; their labels are not smoothed.
OWN_LOSS = ("BaseCNN-Ensemble", "All-Ensemble", "CapsNet")


def cifar(name: str, epochs: int | None = None, dataset: str = "cifar10") -> ConfigDict:
    """The paper's CIFAR recipe (Sections 6.2 and 6.3).

    SGD with momentum 0.9, learning rate 0.1 divided by 10 twice, shift and mirror augmentation.
    Plain networks: batch 128, 200 epochs. Residual networks: batch 64, 350 epochs.

    Args:
      name: a name that `create_model` accepts; it is not checked here.
      epochs: 200 or 350; None is the paper's number for this kind of network.
      dataset: cifar10 or cifar100.

    Returns:
      A config; its values can be changed before it is used.

    Raises:
      UserError: the paper has no recipe for these epochs or this data set.
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
    # The paper does not state the weight decay; these values are customary.
    config.optimizer.weight_decay = 1e-4 if residual else 5e-4
    return config


def fast(name: str, epochs: int = FAST_EPOCHS, dataset: str = "cifar10") -> ConfigDict:
    """A recipe that is not the paper's: its CIFAR networks, unchanged, in fewer epochs.

    Nesterov momentum, a warm-up of a fifteenth of the epochs and a linear decay, alternating flips,
    label smoothing and an average of the weights. docs/recipes.md has the values that were tried.

    Args:
      name: a name that `create_model` accepts; it is not checked here.
      epochs: number of epochs, at least 1.
      dataset: cifar10 or cifar100.

    Returns:
      A config; its values can be changed before it is used.

    Raises:
      UserError: no epochs, or another data set.
    """
    if epochs < 1 or dataset not in DATASETS:
        raise UserError(
            f"the fast recipe trains for at least 1 epoch on {' or '.join(DATASETS)}, "
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
    config.schedule.warmup = f"{epochs / 15:.6g} epochs"
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 5e-4
    config.label_smoothing = 0.0 if name in OWN_LOSS else 0.1
    config.ema = 0.998
    return config


def digits() -> ConfigDict:
    """BaseCNN-2-CC on scikit-learn's handwritten digits: a quick first run, not in the paper.

    Returns:
      A config; its values can be changed before it is used.
    """
    config = default_config()
    config.model.name = "BaseCNN-2-CC"
    config.dataset.name = "digits"
    config.dataset.shift = 1  # of 8 pixels; digits have no mirror images
    config.batch_size = 64
    config.train_for = "15 epochs"
    config.schedule.learning_rate = 0.05
    config.schedule.boundaries = "9 epochs, 13 epochs"
    return config


def folder(name: str = "ResNet18-2-CC") -> ConfigDict:
    """A recipe for a folder of images; not in the paper. ``config.dataset.source`` names it.

    Batch 64, 90 epochs, a warm-up of one epoch to the rate of 0.025 (the paper's 0.1 at batch 256,
    scaled), then a cosine decay. Random crops of 224x224 from images of 256x256 for ImageNet's
    networks, of 32x32 from 36x36 for the others; mirror images.

    Args:
      name: a name that `create_model` accepts.

    Returns:
      A config; its values can be changed before it is used.

    Raises:
      UserError: the name is unknown.
    """
    side = max(32, family_of(name).image_shape[0])  # CapsNet's default is 28, but it takes any size
    config = default_config()
    config.model.name = name
    config.dataset.name = FOLDER
    config.dataset.size = side * 8 // 7  # the ratio of 256 to 224
    config.dataset.crop = side
    config.dataset.flip = True
    config.batch_size = 64
    config.train_for = "90 epochs"
    config.schedule.learning_rate = 0.025
    config.schedule.kind = "cosine"
    config.schedule.warmup = "1 epoch"
    config.optimizer.weight_decay = 1e-4
    return config


def finetune(name: str = "ResNet18-2-CC") -> ConfigDict:
    """A recipe for a folder of images, from the weights of ``config.init_from``.

    That of `folder` with these changes: 10 epochs; training stops early when the error has been
    above its lowest for 5 epochs. For ImageNet's networks, the rate is 0.01 (customary), and images
    are normalized by ImageNet's mean and deviation, as weights from torchvision and timm require;
    for the others, the rate is 0.1 (chosen on held-out images, see docs/own_images.md).

    Args:
      name: a name that `create_model` accepts.

    Returns:
      A config; its values can be changed before it is used. ``init_from`` must be set; to "" for
      random weights.

    Raises:
      UserError: the name is unknown.
    """
    config = folder(name)
    config.init_from = NEEDED
    config.train_for = "10 epochs"
    config.patience = "5 epochs"
    config.schedule.learning_rate = 0.1
    if family_of(name).image_shape[0] == 224:
        config.schedule.learning_rate = 0.01
        config.dataset.mean, config.dataset.std = IMAGENET_MEAN, IMAGENET_STD
    return config


def imagenet(name: str, subset: bool = False) -> ConfigDict:
    """The paper's ILSVRC2012 recipe (Section 6.4).

    SGD with momentum 0.9, batch 256, 120 epochs, learning rate 0.1 divided by 10 every 30 epochs,
    random 224x224 crops of 256x256 images, mirror augmentation, ten-crop evaluation.

    Args:
      name: a name that `create_model` accepts; it is not checked here.
      subset: whether to train on the first 100 classes only, for 90 epochs.

    Returns:
      A config; its values can be changed before it is used.
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
    config.optimizer.weight_decay = 1e-4  # customary; the paper does not state it
    return config
