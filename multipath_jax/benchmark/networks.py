"""Whole training steps: the cost of routers and of paths, and the fastest execution of paths."""

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from multipath_jax.benchmark.rows import Part, Row, at_most, megabytes
from multipath_jax.benchmark.settings import Problem, Settings
from multipath_jax.benchmark.steps import CompiledStep, network_step
from multipath_jax.benchmark.timing import Times
from multipath_jax.layers import Execution


def _figures(times: Times, steps: dict[str, CompiledStep]) -> dict[str, float | None]:
    """The step time, peak memory and compile time of each contestant."""
    figures = {}
    for name, step in steps.items():
        figures[f"{name} ms"] = times.milliseconds(name)
        figures[f"{name} peak MB"] = megabytes(step.bytes)
        figures[f"{name} compile s"] = step.compile_seconds
    return figures


def compiled(
    settings: Settings, asked: Mapping[str, tuple[Problem, Mapping[str, Any]]]
) -> dict[str, CompiledStep]:
    """Compiles the steps of problems with options (`network_step`). Raises OutOfTime."""
    steps = {}
    for name, (problem, options) in asked.items():
        settings.check_time()
        steps[name] = network_step(problem, **options)
    return steps


def _overhead(settings: Settings, network: str) -> Iterator[Row]:
    problem = settings.problem(network)
    asked = {"routed": (problem, {}), "unrouted": (problem, {"routers": False})}
    steps = compiled(settings, asked)
    times = settings.interleave(steps)
    yield Row(
        f"{network} batch {problem.batch}",
        "with routers / without",
        times.ratio("routed", "unrouted"),
        at_most(1.05),
        _figures(times, steps),
    )


# The step with routers over the step of the same paths without them.
OVERHEAD = Part(
    lambda settings: settings.choose(
        ("BaseCNN-2-CC", "ResNet8-2-CC"),
        ("BaseCNN-2-CC", "BaseCNN-3-CC", "BaseCNN-4-CC", "ResNet20-2-CC", "ResNet20-4-CC"),
        ("ResNet18-2-CC",),
    ),
    _overhead,
)


def _paths(settings: Settings, family: str) -> Iterator[Row]:
    numbers = settings.choose((1, 2, 8), (1, 2, 3, 4, 6, 8))
    problems = {x: settings.problem(f"{family}-{x}-CC") for x in numbers}
    steps = compiled(settings, {str(x): (problem, {}) for x, problem in problems.items()})
    times = settings.interleave(steps)
    for x, problem in problems.items():
        figures = {
            "step ms": times.milliseconds(str(x)),
            "step a path ms": times.milliseconds(str(x)) / x,
            "peak MB": megabytes(steps[str(x)].bytes),
            "compile s": steps[str(x)].compile_seconds,
            "paths": x,
        }
        yield Row(
            f"{problem.network} batch {problem.batch}",
            "time a path / that of 2 paths",
            times.ratio(str(x), "2", scale=2 / x),
            at_most(1.05) if x == 8 else None,
            figures,
        )


# Step time and peak memory by number of paths.
PATHS = Part(lambda settings: settings.choose(("BaseCNN",), ("BaseCNN", "ResNet20")), _paths)


def _execution(settings: Settings, network: str) -> Iterator[Row]:
    problem, forms = settings.problem(network), get_args(Execution)
    default, *others = forms
    asked = {default: (problem, {})} | {form: (problem, {"execution": form}) for form in others}
    steps = compiled(settings, asked)
    times = settings.interleave(steps)
    fastest = min(forms, key=times.milliseconds)
    for form in others:
        yield Row(
            f"{network} batch {problem.batch}",
            f"{form} / {default}",
            times.ratio(form, default),
            figures=_figures(times, {name: steps[name] for name in (default, form)}),
            note=f"fastest: {fastest}",
        )


# The other kinds of execution over the default one.
EXECUTION = Part(
    lambda settings: settings.choose(
        ("BaseCNN-2-CC",),
        ("BaseCNN-2-CC", "BaseCNN-4-CC", "BaseCNN-2-CP", "ResNet20-2-CC", "ResNet20-4-CC"),
        ("BaseCNN-8-CC", "ResNet20-2-CP", "VGG13-2-CC", "ResNet18-2-CC"),
    ),
    _execution,
)
