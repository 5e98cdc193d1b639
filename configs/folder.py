"""Any network on your own images: a folder with a folder of images for each class.

Command:   python -m multipath_jax.main --config=folder --config.dataset.source=DIR
           --workdir=runs/mine, on one line
           folder:NAME for any name of list_models(); without one, ResNet18-2-CC
Protocol:  not the paper's: batch 64, 90 epochs, a warm-up of one epoch to the rate of 0.025 (the
           paper's 0.1 for 256 images), then a cosine, so that --config.train_for=... asks for no
           other change. ImageNet's networks see random crops of 224x224 of images of 256x256, the
           others of 32x32 of 36x36, and mirror images (--config.dataset.flip=False: none).
Time:      15 minutes for 15 epochs of BaseCNN-2-CC on 5,000 pictures of 32x32 (CIFAR-10's, as PNG
           files in ten folders), on two CPU cores beside other work
Error:     that of your images; 30.20 % for those
"""

from ml_collections import ConfigDict

from multipath_jax.config.keys import FOLDER, default_config
from multipath_jax.models.registry import family_of


def get_config(name: str = "ResNet18-2-CC") -> ConfigDict:
    """The recipe for a network by its name. Raises UserError for an unknown one."""
    side = max(32, family_of(name).image_shape[0])  # CapsNet's are MNIST's 28, but it takes any
    config = default_config()
    config.model.name = name
    config.dataset.name = FOLDER
    config.dataset.size = side * 8 // 7  # as 256 to 224
    config.dataset.crop = side
    config.dataset.flip = True
    config.batch_size = 64
    config.train_for = "90 epochs"
    config.schedule.learning_rate = 0.025
    config.schedule.kind = "cosine"
    config.schedule.warmup = "1 epoch"
    config.optimizer.weight_decay = 1e-4
    return config
