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

from multipath_jax import recipes


def get_config(name: str = "ResNet18-2-CC") -> ConfigDict:
    """The config for a network. Raises UserError if the name is unknown."""
    return recipes.folder(name)
