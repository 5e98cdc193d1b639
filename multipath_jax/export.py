"""Exports a trained network as one file that can be used without this package, with a model card.

    python -m multipath_jax.export --workdir=runs/digits --out=digits.jax
    python -m multipath_jax.export --workdir=runs/digits --out=digits.onnx --format=onnx

The file is a function from stored images, uint8 ``[b h w c]`` with any b, to float32 logits
``[b classes]``, including cropping, normalization and parameters. Its model card, ``FILE.md``, is
in the form that the Hugging Face hub reads.

jax: a `jax.export` artifact for CPUs, NVIDIA GPUs and TPUs. JAX guarantees that versions up to
three weeks older and six months newer than the one that wrote it can read it. Reading also needs
the package flatbuffers.

onnx: an ONNX model with the input ``images`` and the output ``logits``. Before it is written, its
logits are compared with those of JAX. Needs the packages of the extra ``onnx``.

Exit status: 0 success; 1 a file cannot be written, or the ONNX model has other logits; 2 invalid
input, or a network that has no ONNX model. Existing files are never overwritten.
"""

import pathlib
from collections.abc import Sequence
from typing import NoReturn

import jax
from jax import export as jax_export

from multipath_jax.card import Exported, model_card
from multipath_jax.checkpoints import DATASET_FILE
from multipath_jax.errors import UserError
from multipath_jax.runs import LoadedRun, load_run
from multipath_jax.to_onnx import INPUT, onnx_model
from multipath_jax.utils import cli, filesystem

PLATFORMS = ("cpu", "cuda", "tpu")
# The packages that write a file, by its format.
PACKAGES = {
    "jax": ("multipath_jax", "jax", "flax"),
    "onnx": ("multipath_jax", "jax", "flax", "jax2onnx", "onnx", "onnxruntime"),
}


def main(argv: Sequence[str]) -> int:
    """Writes the file and its card, prints how to use it, and returns the exit status."""
    flags = _parser().parse_args(argv)
    if flags.format == "onnx" and flags.dtype != "float32":
        raise UserError(f"--format=onnx is float32 only; remove --dtype={flags.dtype}")
    out = filesystem.output_file("--out", flags.out)
    card = filesystem.output_file("--out", f"{out}.md")
    run = load_run(flags.workdir, flags.checkpoint, dtype=flags.dtype).head(flags.head)
    content = onnx_model(run) if flags.format == "onnx" else artifact(run)
    usage = _usage(run, flags.format, out.name)
    exported = Exported(out.name, content, flags.format, PACKAGES[flags.format], usage)
    text = model_card(run, exported)
    with filesystem.replacing(card) as new_card:
        new_card.write_text(text, encoding="utf-8")
        with filesystem.replacing(out) as new:
            new.write_bytes(content)
    print("\n".join(_report(run, flags.format, out)))
    return 0


def _parser() -> cli.Parser:
    parser = cli.Parser("export", "Exports a trained network as one file, with a model card.")
    parser.add_argument("--workdir", required=True, help="workdir of the run")
    parser.add_argument("--head", metavar="NAME", help="data set, of a run on several")
    parser.add_argument(
        "--out", required=True, metavar="FILE", help="file to write; the card is FILE.md"
    )
    parser.add_argument(
        "--format", default="jax", choices=PACKAGES, help="of the file; default: jax"
    )
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


def _usage(run: LoadedRun, form: str, file: str) -> list[str]:
    """Lines of Python that use the file."""
    height, width, channels = run.description.stored_shape
    shapes = f"{run.description.dtype} [b {height} {width} {channels}]"
    shapes = f"# {shapes} -> float32 [b {run.description.num_classes}]"
    if form == "onnx":
        return [
            "import onnxruntime  # pip install onnxruntime",
            f"network = onnxruntime.InferenceSession({file!r})",
            f"(logits,) = network.run(None, {{{INPUT!r}: images}})  {shapes}",
        ]
    return [
        "import jax, jax.export  # pip install jax flatbuffers",
        f"network = jax.jit(jax.export.deserialize(open({file!r}, 'rb').read()).call)",
        f"logits = network(images)  {shapes}",
    ]


def _report(run: LoadedRun, form: str, out: pathlib.Path) -> list[str]:
    where = "" if form == "onnx" else f", for {', '.join(PLATFORMS)}"
    return [
        f"wrote {out} ({out.stat().st_size / 1e6:.1f} MB): {run.config.model.name} after "
        f"{run.step} steps{where}",
        f"wrote {out}.md",
        "",
        *(f"    {line}" for line in _usage(run, form, str(out))),
        "",
        f"The names of the classes, in order, are in {run.workdir / DATASET_FILE}.",
    ]


def run() -> NoReturn:
    """The entry point."""
    cli.run(main)


if __name__ == "__main__":
    run()
