"""Section 6.2 and 6.3: any network on CIFAR-10 or CIFAR-100, by the paper's recipes.

Command:   python -m multipath_jax.main --config=cifar:BaseCNN-2-CC --workdir=runs/cifar
           cifar:NAME[,epochs=350][,dataset=cifar100] for any name of list_models()
Protocol:  plain CNNs: batch 128, 200 epochs, rate 0.1 divided by 10 after epochs 80 and 150; with
           epochs=350 (the tables' dagger) after 150 and 250. Residual networks: batch 64, 350
           epochs. Shift of up to 4 pixels each way, random mirror images.
Time:      4 minutes an epoch of BaseCNN-2-CC on 2 CPU cores; not measured on a GPU yet
Error:     in the paper, of BaseCNN-2-CC 7.03 % (6.53 % with epochs=350), of the others Tables 2
           and 3; here, of BaseCNN-2-CC after epochs 1 and 2, 59.4 and 45.3 %; no full run yet
"""

from ml_collections import ConfigDict

from multipath_jax import recipes
from multipath_jax.errors import UserError


def get_config(arguments: str = "BaseCNN-2-CC") -> ConfigDict:
    """``NAME[,epochs=200|350][,dataset=cifar10|cifar100]``; UserError for other arguments."""
    name, options = parse(arguments)
    epochs = options.get("epochs")
    dataset = options.get("dataset", "cifar10")
    if epochs not in (None, *map(str, recipes.BOUNDARIES)) or dataset not in recipes.DATASETS:
        form = get_config.__doc__.split(";")[0]
        raise UserError(f"--config=cifar:{arguments} is not of the form {form}")
    return recipes.cifar(name, None if epochs is None else int(epochs), dataset)


def parse(arguments: str) -> tuple[str, dict[str, str]]:
    """Splits the arguments into the network's name and its options; UserError if unknown."""
    name, *options = arguments.split(",")
    pairs = dict(option.partition("=")[::2] for option in options)
    if unknown := pairs.keys() - {"epochs", "dataset"}:
        raise UserError(
            f"the recipe cifar has no option {min(unknown)!r}; its options are epochs and dataset"
        )
    return name, pairs
