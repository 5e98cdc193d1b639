"""Any network on CIFAR-10 or CIFAR-100, by a recipe with fewer epochs than the paper's.

Command:   python -m multipath_jax.main --config=cifar_fast:BaseCNN --workdir=runs/fast
           cifar_fast:NAME[,epochs=N][,dataset=cifar100] for any name of list_models()
Protocol:  not the paper's, but its networks, unchanged: batch 128, 10 epochs, Nesterov's momentum,
           a warm-up over a fifteenth of the epochs to the rate of 0.1, then a straight line to
           zero. Shift of up to 4 pixels each way, reflected at the edges; mirror images in every
           other epoch; label smoothing of 0.1; a moving average of the weights is evaluated.
Time:      42 minutes on two CPU cores beside other work (BaseCNN-2-CC: 73)
Error:     12.04 % on the test split of CIFAR-10 (BaseCNN-2: 11.66 %, Cr-Stitch2: 11.23 %,
           BaseCNN-2-CC: 11.11 %; means of two seeds, one of Cr-Stitch2)
"""

from ml_collections import ConfigDict

from multipath_jax import recipes
from multipath_jax.errors import UserError


def get_config(arguments: str = "BaseCNN-2-CC") -> ConfigDict:
    """``NAME[,epochs=N][,dataset=cifar10|cifar100]``; UserError for other arguments."""
    name, *options = arguments.split(",")
    pairs = dict(option.partition("=")[::2] for option in options)
    epochs = pairs.pop("epochs", str(recipes.FAST_EPOCHS))
    dataset = pairs.pop("dataset", "cifar10")
    if pairs or not epochs.isdecimal():
        form = get_config.__doc__.split(";")[0]
        raise UserError(f"--config=cifar_fast:{arguments} is not of the form {form}")
    return recipes.fast(name, int(epochs), dataset)
