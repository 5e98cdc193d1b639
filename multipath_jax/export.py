"""A trained network as one file that needs neither this package nor Flax.

    python -m multipath_jax.export --workdir=runs/digits --out=digits.jax

The file is a `jax.export` artifact: images as they are stored, uint8 ``[b h w c]`` with any b, to
float32 logits ``[b classes]``; cropping, normalization and parameters are inside, and it runs on
CPUs, NVIDIA GPUs and TPUs. By JAX's promise it is read by versions up to three weeks older and six
months newer than the one that wrote it. Beside JAX, reading takes the package flatbuffers, as
`jax.export` does.
Exit status: 0; 1 if there is no room to write; 2 for bad input.
"""

import pathlib
from collections.abc import Sequence
from typing import NoReturn

import jax
from jax import export as jax_export

from multipath_jax.checkpoints import DATASET_FILE
from multipath_jax.runs import LoadedRun, load_run
from multipath_jax.utils import cli, filesystem

PLATFORMS = ("cpu", "cuda", "tpu")


def main(argv: Sequence[str]) -> int:
    """Writes the file and says how to use it; gives the exit status."""
    flags = _parser().parse_args(argv)
    out = filesystem.output_file("--out", flags.out)
    run = load_run(flags.workdir, flags.checkpoint, dtype=flags.dtype)
    content = artifact(run)
    with filesystem.replacing(out) as new:
        new.write_bytes(content)
    print("\n".join(_usage(run, out)))
    return 0


def _parser() -> cli.Parser:
    parser = cli.Parser("export", "A trained network as one file for JAX.")
    parser.add_argument("--workdir", required=True, help="of the run that trained it")
    parser.add_argument("--out", required=True, metavar="FILE", help="to write")
    parser.add_argument("--checkpoint", default="best", help="best (default), latest, or a step")
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "bfloat16"),
        help="of the computation, on every platform; float32 by default",
    )
    return parser


def artifact(run: LoadedRun) -> bytes:
    """The run's network, serialized by `jax.export` for all of `PLATFORMS`."""
    (batch,) = jax_export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((batch, *run.description.stored_shape), run.description.dtype)

    @jax.jit
    def forward(images):
        return run.forward(run.variables, run.crop(images))  # the weights are constants, then

    return bytes(jax_export.export(forward, platforms=PLATFORMS)(images).serialize())


def _usage(run: LoadedRun, out: pathlib.Path) -> list[str]:
    height, width, channels = run.description.stored_shape
    classes = run.description.num_classes
    return [
        f"wrote {out} ({out.stat().st_size / 1e6:.1f} MB): {run.config.model.name} after "
        f"{run.step} steps, for {', '.join(PLATFORMS)}",
        "",
        "    import jax, jax.export  # pip install jax flatbuffers",
        f"    network = jax.jit(jax.export.deserialize(open({str(out)!r}, 'rb').read()).call)",
        f"    logits = network(images)  # {run.description.dtype} [b {height} {width} {channels}]"
        f" -> float32 [b {classes}]",
        "",
        f"The classes are named, in their order, by {run.workdir / DATASET_FILE}.",
    ]


def run() -> NoReturn:
    """The entry point."""
    cli.run(main)


if __name__ == "__main__":
    run()
