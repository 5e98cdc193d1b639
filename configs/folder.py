"""Any network on your own images: a folder with a folder of images for each class.

Command:   python -m multipath_jax.main --config=folder --config.dataset.source=DIR
           --workdir=runs/mine, on one line
           folder:NAME for any name of list_models(); without one, ResNet18-2-CC
Protocol:  not the paper's: batch 64, 90 epochs, a warm-up of one epoch to the rate of 0.025 (the
           paper's 0.1 at batch 256, scaled), then a cosine decay, so that --config.train_for=...
           requires no other change. Random crops of 224x224 from images of 256x256 for ImageNet's
           networks, of 32x32 from 36x36 for the others; mirror images, unless
           --config.dataset.flip=False.
Time:      15 minutes for 15 epochs of BaseCNN-2-CC on 5,000 images of 32x32 (CIFAR-10's, as PNG
           files in ten folders), on two CPU cores shared with other work
Error:     depends on your images; 30.20 % for those
"""

from ml_collections import ConfigDict

from multipath_jax.config.keys import FOLDER, default_config
from multipath_jax.models.registry import family_of


def get_config(name: str = "ResNet18-2-CC") -> ConfigDict:
    """The config for a network. Raises UserError if the name is unknown."""
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
