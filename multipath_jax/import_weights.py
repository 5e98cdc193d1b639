"""Makes a run from weights of another library.

    python -m multipath_jax.import_weights --from=resnet20.safetensors --model=ResNet20 \\
      --dataset=cifar10 --workdir=runs/r20 --mean=0.485,0.456,0.406 --std=0.229,0.224,0.225
    python -m multipath_jax.main --mode=eval --workdir=runs/r20

The workdir can be used like that of any run: for evaluation, export, figures, and init_from.
--from is a .safetensors file, a PyTorch state dict (.pth, .pt, .th or .bin), a folder with one of
them, or an address; docs/weights.md lists the supported networks.

Exit status: 0 success; 1 a file cannot be written; 2 invalid input, and nothing is written.
"""

from collections.abc import Sequence
from typing import NoReturn

from ml_collections import ConfigDict

from multipath_jax import weights
from multipath_jax.config.keys import default_config, parse_options, validate
from multipath_jax.pretrained import check_free, in_words, make_run, origin_of
from multipath_jax.training.setup import check_options, cropped_shape, read_dataset
from multipath_jax.utils import cli, filesystem
from multipath_jax.weights import StateDict


def main(argv: Sequence[str]) -> int:
    """Makes the workdir and returns the exit status."""
    flags = _parser().parse_args(argv)
    workdir = filesystem.path("--workdir", flags.workdir)
    check_free(workdir)
    options = parse_options("--options", flags.options)
    check_options(options, "--options")
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
    lines += found.other_classes(dataset.class_names)
    lines.append(_normalization(config))
    print("\n".join(lines))
    return 0


def _parser() -> cli.Parser:
    parser = cli.Parser("import_weights", "Makes a run from weights of another library.")
    add = parser.add_argument
    add("--from", required=True, dest="source_file", metavar="FILE", help="file of the weights")
    add("--workdir", required=True, help="folder of the new run")
    add("--model", default="", help="network, such as ResNet18; default: from FILE's metadata")
    add("--options", default="", help="options of the network, such as shortcut=identity")
    add("--dataset", default="digits", help="data set, such as cifar10")
    add("--data_dir", default="", help="TFDS data directory")
    add("--source", default="", metavar="DIR", help="folder of images, with --dataset=folder")
    add("--size", type=int, default=0, help="side to which images are rescaled")
    add("--crop", type=int, default=0, help="side of the center crops")
    add("--mean", default="", help="mean of the pixels in [0, 1], such as 0.485,0.456,0.406")
    add("--std", default="", help="their standard deviation")
    return parser


def _config(flags, state: StateDict) -> ConfigDict:
    """The config of the run without its network."""
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
