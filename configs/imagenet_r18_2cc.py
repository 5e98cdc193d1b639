"""Section 6.4: ResNet18 with two paths and cross-connections, on all of ILSVRC2012 (Table 4).

Command:   python -m multipath_jax.main --config=imagenet_r18_2cc --workdir=runs/r18_2cc
           with --config.dataset.data_dir=DIR where the images are not in TFDS's own folder
Protocol:  as in imagenet.py: batch 256, 120 epochs, rate 0.1 divided by 10 every 30
Time:      not measured yet
Error:     in the paper 26.48 % (top-5 8.6 %), on ten crops 24.5 % (7.34 %); here not measured yet
"""

from ml_collections import ConfigDict

from multipath_jax import recipes


def get_config() -> ConfigDict:
    return recipes.imagenet("ResNet18-2-CC")
