"""One contestant in a separate process: ``python -m multipath_jax.benchmark.worker SPEC``.

SPEC is JSON. The worker prints a line when its first steps are done. Then it reads numbers of steps
from the standard input, runs them, and answers with their seconds. `process_pool` starts such
processes.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from multipath_jax.utils import cpu


def main(spec: dict[str, Any]) -> None:
    """Runs until the standard input ends."""
    cpu.tune()  # PyTorch gains from kept memory too
    # Output of compilers and progress bars goes to stderr, not between the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def since_launch() -> float:
        return time.time() - spec["launched"]

    def say(**values: float | None) -> None:
        print(json.dumps(values), file=answers)

    if spec["kind"] == "run":
        _first_step_of_a_run(spec, lambda: say(startup=since_launch(), compile=None))
        return
    serve(_KINDS[spec["kind"]](spec), sys.stdin, say, since_launch)


def serve(
    step: Callable[[int], float],
    orders: Iterable[str],
    say: Callable[..., None],
    since_launch: Callable[[], float],
) -> None:
    """Runs the first steps, reports their times, and then runs steps as ordered."""
    first, startup, second = step(1), since_launch(), step(1)
    # Our steps are compiled before the first call, PyTorch's during it.
    compile_seconds = getattr(step, "compile_seconds", 0.0) + max(0.0, first - second)
    say(startup=startup, compile=compile_seconds)
    for order in orders:
        say(seconds=step(int(order)))


def _problem(spec: dict[str, Any]) -> Any:
    from multipath_jax.benchmark.settings import Problem

    problem = spec["problem"]
    return Problem(**problem | {"image_shape": tuple(problem["image_shape"])})


def _ours(spec: dict[str, Any]) -> Callable[[int], float]:
    from multipath_jax.benchmark.steps import network_step

    return network_step(_problem(spec), dispatch=spec.get("dispatch"), **spec.get("options", {}))


def _vmap(spec: dict[str, Any]) -> Callable[[int], float]:
    import jax.numpy as jnp

    from multipath_jax.benchmark.steps import model_step
    from multipath_jax.benchmark.vmap_peer import create

    problem = _problem(spec)
    model = create(problem.network, problem.num_classes, jnp.dtype(problem.dtype))
    return model_step(model, problem, dispatch=1)


def _torch(spec: dict[str, Any]) -> Callable[[int], float]:
    # JAX is not initialized here, so it starts no threads and allocates no memory.
    from multipath_jax.benchmark.torch_peer import TrainingStep

    problem = spec["problem"]
    return TrainingStep(
        problem["network"],
        problem["batch"],
        problem["image_shape"],
        problem["num_classes"],
        device="cpu" if spec["platform"] == "cpu" else "cuda",
        bfloat16=problem["dtype"] == "bfloat16",
        compiled=spec["kind"] == "torch.compile",
    )


_KINDS = {"ours": _ours, "nn.vmap": _vmap, "torch": _torch, "torch.compile": _torch}


def _first_step_of_a_run(spec: dict[str, Any], ready: Callable[[], None]) -> None:
    """Trains like `multipath_jax.main` and stops after the first step."""
    from ml_collections import ConfigDict

    from multipath_jax.config.keys import default_config
    from multipath_jax.parallel.compilation import enable_compilation_cache
    from multipath_jax.trainer import train

    def stop() -> bool:
        ready()
        return True

    config: ConfigDict = default_config()
    config.update_from_flattened_dict(spec["config"])
    enable_compilation_cache(config.compilation_cache)
    train(config, spec["workdir"], should_stop=stop)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
