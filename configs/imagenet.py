"""Section 6.4: any network on ILSVRC2012, or on its first 100 classes, by the paper's recipes.

Command:   python -m multipath_jax.main --config=imagenet:ResNet34 --workdir=runs/r34
           imagenet:NAME[,subset] for any name of list_models(), and
           --config.dataset.data_dir=DIR where the prepared images are not in TFDS's own folder
Protocol:  batch 256, 120 epochs (subset: 90), rate 0.1 divided by 10 every 30 epochs. Images of
           256x256, random crops of 224x224 and mirror images; evaluated on the center crop, and at
           the end of training on ten crops. bfloat16 on accelerators.
Time:      not measured yet
Error:     in the paper, Table 4: of ResNet18-2-CC 26.48 % (ten crops 24.5 %), and on the subset of
           ResNet50-2-CC 18.64 % (17.62 %); here not measured yet
"""

from ml_collections import ConfigDict

from multipath_jax import recipes
from multipath_jax.errors import UserError


def get_config(arguments: str = "ResNet18-2-CC") -> ConfigDict:
    """``NAME`` or ``NAME,subset``; UserError for other arguments."""
    name, comma, option = arguments.partition(",")
    if comma and option != "subset":
        form = get_config.__doc__.split(";")[0]
        raise UserError(f"--config=imagenet:{arguments} is not of the form {form}")
    return recipes.imagenet(name, subset=bool(comma))
