"""Exports a trained network as one file that can be used with JAX alone.

    python -m multipath_jax.export --workdir=runs/digits --out=digits.jax

The file is a `jax.export` artifact: a function from stored images, uint8 ``[b h w c]`` with any b,
to float32 logits ``[b classes]``, including cropping, normalization and parameters. It runs on
CPUs, NVIDIA GPUs and TPUs. JAX guarantees that versions up to three weeks older and six months
newer than the one that wrote it can read it. Reading also needs the package flatbuffers.
Exit status: 0 success; 1 the file cannot be written; 2 invalid input.
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
    """Writes the file, prints how to use it, and returns the exit status."""
    flags = _parser().parse_args(argv)
    out = filesystem.output_file("--out", flags.out)
    run = load_run(flags.workdir, flags.checkpoint, dtype=flags.dtype).head(flags.head)
    content = artifact(run)
    with filesystem.replacing(out) as new:
        new.write_bytes(content)
    print("\n".join(_usage(run, out)))
    return 0


def _parser() -> cli.Parser:
    parser = cli.Parser("export", "Exports a trained network as one file for JAX.")
    parser.add_argument("--workdir", required=True, help="workdir of the run")
    parser.add_argument("--head", metavar="NAME", help="data set, of a run on several")
    parser.add_argument("--out", required=True, metavar="FILE", help="file to write")
    parser.add_argument("--checkpoint", default="best", help="best (default), latest, or a step")
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "bfloat16"),
        help="type of the computation on all platforms; default: float32",
    )
    return parser


def artifact(run: LoadedRun) -> bytes:
    """The network of a run, serialized by `jax.export` for all `PLATFORMS`."""
    (batch,) = jax_export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((batch, *run.description.stored_shape), run.description.dtype)

    @jax.jit
    def forward(images):
        return run.forward(run.variables, run.crop(images))  # the weights become constants

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
        f"The names of the classes, in order, are in {run.workdir / DATASET_FILE}.",
        *_before(run),
    ]


def _before(run: LoadedRun) -> list[str]:
    """How the images of one of several data sets get the shape of the input."""
    original, stored = run.description.original_shape, run.description.stored_shape
    if original in (None, stored):
        return []
    shapes = ["x".join(map(str, shape)) for shape in (original, stored)]
    return [
        f"In training, its images of {shapes[0]} were brought to {shapes[1]} (data.brought_to)."
    ]


def run() -> NoReturn:
    """The entry point."""
    cli.run(main)


if __name__ == "__main__":
    run()
