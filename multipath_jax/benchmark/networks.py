"""Whole training steps: what routers cost, what paths cost, how paths best run."""

from collections.abc import Iterator
from typing import get_args

from multipath_jax.benchmark.rows import Row, at_most, megabytes
from multipath_jax.benchmark.settings import Settings
from multipath_jax.benchmark.steps import CompiledStep, network_step
from multipath_jax.benchmark.timing import Times
from multipath_jax.layers import Execution


def _figures(times: Times, steps: dict[str, CompiledStep]) -> dict[str, float | None]:
    """Step time, peak memory and compile time of each contestant."""
    figures = {}
    for name, step in steps.items():
        figures[f"{name} ms"] = times.milliseconds(name)
        figures[f"{name} peak MB"] = megabytes(step.bytes)
        figures[f"{name} compile s"] = step.compile_seconds
    return figures


def overhead(settings: Settings) -> Iterator[Row]:
    """Part 1: the step with routers over the step of the same paths without them."""
    networks = settings.choose(
        ("BaseCNN-2-CC", "ResNet8-2-CC"),
        ("BaseCNN-2-CC", "BaseCNN-3-CC", "BaseCNN-4-CC", "ResNet20-2-CC", "ResNet20-4-CC"),
        ("ResNet18-2-CC",),
    )
    for network in networks:
        problem = settings.problem(network)
        steps = {
            "routed": network_step(problem),
            "unrouted": network_step(problem, routers=False),
        }
        times = settings.interleave(steps)
        yield Row(
            f"{network} batch {problem.batch}",
            "with routers / without",
            times.ratio("routed", "unrouted"),
            at_most(1.05),
            _figures(times, steps),
        )


def paths(settings: Settings) -> Iterator[Row]:
    """Part 2: the step and its peak memory for a growing number of paths."""
    for family in settings.choose(("BaseCNN",), ("BaseCNN", "ResNet20")):
        numbers = settings.choose((1, 2, 8), (1, 2, 3, 4, 6, 8))
        problems = {x: settings.problem(f"{family}-{x}-CC") for x in numbers}
        steps = {str(x): network_step(problem) for x, problem in problems.items()}
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


TRIALS = 3  # as many as the tables take the best of


def trials(settings: Settings) -> Iterator[Row]:
    """Part 9: the step of three trials in one program over three steps of one."""
    for network in settings.choose(("BaseCNN-2-CC",), ("BaseCNN-2-CC", "ResNet20-2-CC")):
        problem = settings.problem(network)
        steps = {"together": network_step(problem, trials=TRIALS), "one": network_step(problem)}
        times = settings.interleave(steps)
        yield Row(
            f"{network} batch {problem.batch}",
            f"{TRIALS} trials side by side / one after another",
            times.ratio("together", "one", scale=1 / TRIALS),
            figures=_figures(times, steps),
        )


def execution(settings: Settings) -> Iterator[Row]:
    """Part 3: every other way to run the paths over the default one, on this backend."""
    networks = settings.choose(
        ("BaseCNN-2-CC",),
        ("BaseCNN-2-CC", "BaseCNN-4-CC", "BaseCNN-2-CP", "ResNet20-2-CC", "ResNet20-4-CC"),
        ("BaseCNN-8-CC", "ResNet20-2-CP", "VGG13-2-CC", "ResNet18-2-CC"),
    )
    forms = get_args(Execution)
    for network in networks:
        problem = settings.problem(network)
        steps = {form: network_step(problem, execution=form) for form in forms}
        times = settings.interleave(steps)
        default, *others = forms
        fastest = min(forms, key=times.milliseconds)
        for form in others:
            yield Row(
                f"{network} batch {problem.batch}",
                f"{form} / {default}",
                times.ratio(form, default),
                figures=_figures(times, {name: steps[name] for name in (default, form)}),
                note=f"fastest: {fastest}",
            )
