"""What a compiled program costs: time to compile, operations, memory."""

import time
from typing import Any, NamedTuple

import jax

from multipath_jax.training import progress


class Cost(NamedTuple):
    """What a compiled step takes.

    Attributes:
      seconds: tracing and compiling.
      flops: floating-point operations of one step, over all devices.
      bytes: a device's memory at its peak, the resident data included.
    """

    seconds: float
    flops: float | None
    bytes: int | None

    def __str__(self) -> str:
        known = [f"{self.seconds:.1f} s"]
        if self.flops is not None:
            known.append(f"{self.flops / 1e9:,.2f} GFLOPs a step")
        if self.bytes is not None:
            known.append(f"{self.bytes / 1e6:,.0f} MB at its peak")
        return ", ".join(known)


def compiled(function: jax.stages.Wrapped, *args: Any) -> tuple[jax.stages.Compiled, Cost]:
    """A jitted training step compiled for arguments like these, and what that came to."""
    begun = time.perf_counter()
    with progress.at_work("compiling the training step", announce=True):
        lowered = function.lower(*args)
        program = lowered.compile()
    seconds = time.perf_counter() - begun
    return program, Cost(seconds, flops(lowered), peak_bytes(program))


def flops(lowered: jax.stages.Lowered) -> float | None:
    """The floating-point operations of a program, a loop's body counted once.

    Counted before it is compiled, for a call to a library's convolution has no operations in it.
    None where the backend does not tell.
    """
    return (lowered.cost_analysis() or {}).get("flops")


def peak_bytes(compiled: jax.stages.Compiled) -> int | None:
    """The memory of a program: arguments, results and temporaries, in bytes.

    None where the backend's compiler does not tell.
    """
    found = compiled.memory_analysis()
    if found is None:
        return None
    return (
        found.argument_size_in_bytes
        + found.output_size_in_bytes
        + found.temp_size_in_bytes
        - found.alias_size_in_bytes
    )
