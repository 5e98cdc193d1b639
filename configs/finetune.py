"""Any network on your own images, from weights that were trained on others.

Command:   python -m multipath_jax.main --config=finetune --config.init_from=FILE
           --config.dataset.source=DIR --workdir=runs/mine, on one line
           finetune:NAME for any name of list_models(); without one, ResNet18-2-CC
Protocol:  that of folder.py with 10 epochs and a rate of 0.01 for ImageNet's networks, whose images
           are normalized by ImageNet's mean and deviation, and of 0.1 for the others; all
           parameters at once. It stops early when the error has been above its lowest for 5 epochs.
Time:      12 minutes for ResNet20-2-CC on 5,000 images of 32x32, on two CPU cores shared with other
           work (ResNet20: 14, with more of it)
Error:     depends on weights and images; 19.6 % for 20 classes of CIFAR-100, from a ResNet20 for
           CIFAR-10 (ResNet20: 21.5 %, from random weights 47.4 %; see docs/own_images.md)
"""

from ml_collections import ConfigDict

from multipath_jax import recipes


def get_config(name: str = "ResNet18-2-CC") -> ConfigDict:
    """The config for a network. Raises UserError if the name is unknown."""
    return recipes.finetune(name)
