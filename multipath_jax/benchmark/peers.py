"""The same network with the same batch and precision in PyTorch and in plain Flax."""

import dataclasses
import importlib.util
from collections.abc import Iterator
from contextlib import ExitStack

from multipath_jax.benchmark.process_pool import Worker, WorkerFailed
from multipath_jax.benchmark.rows import Part, Row, Target, at_least
from multipath_jax.benchmark.settings import Problem, Settings

NAMES = {
    "torch": "PyTorch eager (channels_last)",
    "torch.compile": "torch.compile",
    "nn.vmap": "plain Flax (nn.vmap)",
}
TARGETS: dict[tuple[str, bool], Target] = {  # by peer and whether it runs on a CPU
    ("torch", True): at_least(1.0),
    ("nn.vmap", True): at_least(8.0),
    ("torch.compile", False): at_least(1.5),
}


def _peers(settings: Settings, network: str) -> Iterator[Row]:
    problem = settings.problem(network)
    kinds = _kinds(settings)
    with ExitStack() as stack:
        workers, reasons = {}, {}
        for kind in ("ours", *kinds):
            reason = missing(kind, settings.platform)
            try:
                if reason is None:
                    workers[kind] = stack.enter_context(_worker(kind, settings, problem))
            except WorkerFailed as error:
                reason = str(error)
            reasons[kind] = reason
        times = settings.interleave(workers) if "ours" in workers else None
    for kind in kinds:
        compared, target = f"steps/s of ours / {NAMES[kind]}", TARGETS.get((kind, settings.on_cpu))
        reason = reasons["ours"] or reasons[kind]
        if reason:
            yield Row(str(problem), compared, None, target, note=f"not measured: {reason}")
            continue
        figures = {}
        for name in ("ours", kind):
            figures[f"{name} ms"] = milliseconds = times.milliseconds(name)
            figures[f"{name} images/s"] = 1e3 * problem.batch / milliseconds
            figures[f"{name} compile s"] = workers[name].ready["compile"]
            figures[f"{name} start to first step s"] = workers[name].ready["startup"]
        yield Row(str(problem), compared, times.ratio(kind, "ours"), target, figures)


def _kinds(settings: Settings) -> tuple[str, ...]:
    """The peers to measure."""
    if not settings.quick:
        return tuple(NAMES)
    # On two CPU cores torch.compile takes as long as the rest of a quick run; on accelerators it is
    # the most relevant peer.
    return ("torch", "nn.vmap") if settings.on_cpu else ("torch.compile",)


# Steps per second of ours over those of each peer.
PEERS = Part(
    lambda settings: (
        *settings.main_networks,
        *settings.choose((), (), ("BaseCNN-4-CC", "ResNet20-2-CC")),
    ),
    _peers,
)


def _worker(kind: str, settings: Settings, problem: Problem) -> Worker:
    spec = {"kind": kind, "problem": dataclasses.asdict(problem), "platform": settings.platform}
    return settings.worker(spec)


def missing(kind: str, platform: str) -> str | None:
    """The reason why a contestant cannot run on this machine; None if it can."""
    if not kind.startswith("torch"):
        return None
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed (pip install 'multipath_jax[peers]')"
    if platform == "tpu":
        return "PyTorch does not run on this TPU"
    if platform == "gpu":
        import torch

        if not torch.cuda.is_available():
            return "this PyTorch has no CUDA"
    return None
