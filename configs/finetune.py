"""Any network on your own images, from weights that were trained on others.

Command:   python -m multipath_jax.main --config=finetune --config.init_from=FILE
           --config.dataset.source=DIR --workdir=runs/mine, on one line
           finetune:NAME for any name of list_models(); without one, ResNet18-2-CC
"""

from ml_collections import ConfigDict

from multipath_jax import recipes


def get_config(name: str = "ResNet18-2-CC") -> ConfigDict:
    """The config for a network. Raises UserError if the name is unknown."""
    return recipes.finetune(name)
