"""A run made of weights that were trained elsewhere.

    python -m multipath_jax.import_weights --from=resnet20.safetensors --model=ResNet20 \\
      --dataset=cifar10 --workdir=runs/r20 --mean=0.485,0.456,0.406 --std=0.229,0.224,0.225
    python -m multipath_jax.main --mode=eval --workdir=runs/r20

The workdir is like any other: it is evaluated, exported and drawn, and init_from starts from it.
FILE is a .safetensors file, a state dict of PyTorch (.pth, .pt, .th or .bin), a folder with one, or
an address of either; docs/weights.md has the networks that are known.

Exit status: 0; 1 if there is no room to write; 2 for bad input, and nothing is written then.
"""

from collections.abc import Sequence
from typing import NoReturn

from ml_collections import ConfigDict

from multipath_jax import weights
from multipath_jax.config.keys import default_config, parse_options, validate
from multipath_jax.pretrained import check_free, in_words, make_run, origin_of
from multipath_jax.training.setup import cropped_shape, read_dataset
from multipath_jax.utils import cli, filesystem
from multipath_jax.weights import StateDict


def main(argv: Sequence[str]) -> int:
    """Makes the workdir and says what it holds; gives the exit status."""
    flags = _parser().parse_args(argv)
    workdir = filesystem.path("--workdir", flags.workdir)
    check_free(workdir)
    options = parse_options("--options", flags.options)
    state = weights.read("--from", flags.source_file)
    config = _config(flags, state)
    validate(config)
    dataset = read_dataset(config.dataset)
    shape = cropped_shape(dataset, config.dataset.crop)
    origin = origin_of(state, f"--from={flags.source_file}", flags.model, options, shape)
    config.model.name, config.model.options = origin.name, in_words(origin.options)
    found = make_run(state, config, dataset, workdir)
    lines = [f"wrote {workdir}: {origin.name} with the weights of {flags.source_file}"]
    if found.head:
        lines.append(str(found.head))
    lines.append(_normalization(config))
    print("\n".join(lines))
    return 0


def _parser() -> cli.Parser:
    parser = cli.Parser("import_weights", "A run made of weights that were trained elsewhere.")
    add = parser.add_argument
    add("--from", required=True, dest="source_file", metavar="FILE", help="of the weights")
    add("--workdir", required=True, help="to make; holds no run yet")
    add("--model", default="", help="the network, such as ResNet18; by default what FILE says")
    add("--options", default="", help="of the network, such as shortcut=identity")
    add("--dataset", default="digits", help="cifar10, or any other that training takes")
    add("--data_dir", default="", help="where TFDS has it")
    add("--source", default="", metavar="DIR", help="a folder of images, for --dataset=folder")
    add("--size", type=int, default=0, help="the side to which images are rescaled")
    add("--crop", type=int, default=0, help="the side of the crops that the network sees")
    add("--mean", default="", help="of the pixels in [0, 1], by channel: 0.485,0.456,0.406")
    add("--std", default="", help="their deviation")
    return parser


def _config(flags, state: StateDict) -> ConfigDict:
    """The config of the run but for its network."""
    config = default_config()
    config.init_from = filesystem.anywhere("--from", flags.source_file)
    config.dataset.name = flags.dataset
    for key in ("data_dir", "source", "size", "crop", "mean", "std"):
        config.dataset[key] = getattr(flags, key)
    if state.mean and not (flags.mean or flags.std):
        config.dataset.mean, config.dataset.std = (
            ", ".join(map(str, numbers)) for numbers in (state.mean, state.std)
        )
    return config


def _normalization(config: ConfigDict) -> str:
    if config.dataset.mean:
        return f"normalized by mean {config.dataset.mean} and deviation {config.dataset.std}"
    return (
        f"normalized by the mean and deviation of {config.dataset.name}; if the weights were "
        "trained with others, give --mean and --std"
    )


def run() -> NoReturn:
    """The entry point."""
    cli.run(main)


if __name__ == "__main__":
    run()
