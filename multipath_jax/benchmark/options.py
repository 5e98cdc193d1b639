"""Options that may make a step faster on this machine, each against the default step."""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from multipath_jax.benchmark.process_pool import Worker, WorkerFailed
from multipath_jax.benchmark.rows import Part, Row
from multipath_jax.benchmark.settings import Problem, Settings
from multipath_jax.benchmark.steps import KNOWN, Dispatch
from multipath_jax.benchmark.timing import OutOfTime

AS_IT_IS = "as it is"


class Option(NamedTuple):
    """An option to try.

    Attributes:
      dispatch: steps per dispatch (`steps.Dispatch`).
      network: options of the network.
      xla: XLA flags, which replace flags of the same names.
      variables: other environment variables.
    """

    dispatch: Dispatch | None = None
    network: Mapping[str, Any] = {}
    xla: tuple[str, ...] = ()
    variables: Mapping[str, str] = {}

    def environment(self) -> dict[str, str]:
        """The environment variables for a process with this option."""
        names = {name(flag) for flag in self.xla}
        kept = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if name(flag) not in names]
        return {"XLA_FLAGS": " ".join([*kept, *self.xla]), **self.variables}


def name(flag: str) -> str:
    """The name of a flag without its value."""
    return flag.partition("=")[0]


def _xla(*flags: str) -> Option:
    return Option(xla=flags)


# `utils.cpu.tune` does not configure an allocator that variables configure: the first has glibc's
# defaults, the second the settings of `tune` and transparent huge pages.
FREED = Option(variables={"MALLOC_ARENA_TEST": "8"})
HUGE_PAGES = Option(
    variables={
        "GLIBC_TUNABLES": "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1000000000000:"
        "glibc.malloc.arena_max=1:glibc.malloc.hugetlb=1"
    }
)
GROUPED = Option(network={"execution": "grouped"})
# Options by backend, the most promising first: a process takes most of a minute to start. A loop on
# the device is not tried on CPUs (see `training.step.Runner`).
ON_CPU = {
    "freed memory returned": FREED,
    "kept memory in huge pages": HUGE_PAGES,
    "grouped paths": GROUPED,
    "4 steps a dispatch": Option(4),
    "no YNNPACK at all": _xla("--xla_cpu_experimental_ynn_fusion_type="),
    "oneDNN": _xla("--xla_cpu_use_onednn=true"),
}
# jaxlib 0.11 knows all these flags; flags that are unknown are reported as not measured.
ON_GPU = {
    f"{KNOWN} steps a dispatch, a loop of known length": Option("known loop"),
    "command buffers of loops too": _xla(
        "--xla_gpu_graph_min_graph_size=1", "--xla_gpu_enable_command_buffer=+WHILE,+CONDITIONAL"
    ),
    "one step a dispatch": Option(1),
    "grouped paths": GROUPED,
    "8 steps a dispatch, no loop": Option(8),
    "command buffers from one kernel on": _xla("--xla_gpu_graph_min_graph_size=1"),
    "no command buffers": _xla("--xla_gpu_enable_command_buffer="),
    "maps as NHWC": _xla("--xla_gpu_force_conv_nhwc=true"),
    "maps as NCHW": _xla("--xla_gpu_force_conv_nchw=true"),
    "autotuning without checks": _xla("--xla_gpu_autotune_level=2"),
    "no autotuning": _xla("--xla_gpu_autotune_level=0"),
    "latency hiding": _xla("--xla_gpu_enable_latency_hiding_scheduler=true"),
    "loops unrolled": _xla(
        "--xla_gpu_enable_while_loop_unrolling=WHILE_LOOP_UNROLLING_AUTO_UNROLL"
    ),
    "products without Triton": _xla("--xla_gpu_enable_triton_gemm=false"),
}
OPTIONS_OF = {
    "cpu": ON_CPU,
    "gpu": ON_GPU,
    "tpu": {"one step a dispatch": Option(1), "grouped paths": GROUPED},
}


def _worker(settings: Settings, problem: Problem, option: Option) -> Worker:
    spec = {
        "kind": "ours",
        "problem": dataclasses.asdict(problem),
        "platform": settings.platform,
        "dispatch": option.dispatch,
        "options": dict(option.network),
    }
    return settings.worker(spec, option.environment())


def _measure(settings: Settings, problem: Problem) -> Iterator[Row]:
    """Yields a row for each option; the note of the last one has the fastest of all."""
    fastest, least = AS_IT_IS, 1.0
    with _worker(settings, problem, Option()) as usual:
        for words, option in OPTIONS_OF[settings.platform].items():
            subject = f"{problem}: {words}"
            try:
                settings.check_time()
                row = _against(usual, settings, problem, option, subject)
            except (WorkerFailed, OutOfTime) as error:
                yield Row(subject, note=f"not measured: {error}; fastest: {fastest}")
                continue
            if row.ratio.median < least:
                fastest, least = words, row.ratio.median
            yield dataclasses.replace(row, note=f"fastest: {fastest} ({least:.3f})")


def _against(
    usual: Worker, settings: Settings, problem: Problem, option: Option, subject: str
) -> Row:
    """Compares an option with the default. Raises WorkerFailed if the option fails."""
    with _worker(settings, problem, option) as other:
        times = settings.interleave({"option": other, "usual": usual})
        return Row(
            subject,
            "time of a step with the option / as it is",
            times.ratio("option", "usual"),
            figures={
                "option ms": times.milliseconds("option"),
                "usual ms": times.milliseconds("usual"),
                "option images/s": 1e3 * problem.batch / times.milliseconds("option"),
                "option compile s": other.ready["compile"],
                "usual compile s": usual.ready["compile"],
            },
        )


# Each option runs in a separate process, since XLA reads its flags once and exits on unknown ones.
OPTIONS = Part(
    lambda settings: [*map(settings.problem, settings.main_networks[: 1 if settings.quick else 3])],
    _measure,
)
