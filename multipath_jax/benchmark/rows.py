"""The rows of results: a ratio, its target, and the figures behind it."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from multipath_jax.benchmark.settings import Settings
from multipath_jax.benchmark.timing import Spread


class Target(NamedTuple):
    """A target for a ratio: ``sense`` is ``<=`` or ``>=``."""

    sense: str
    bound: float

    def met_by(self, ratio: float) -> bool:
        return ratio <= self.bound if self.sense == "<=" else ratio >= self.bound

    def __str__(self) -> str:
        return f"{self.sense} {self.bound:g}"


def at_most(bound: float) -> Target:
    """The target that a ratio is at most ``bound``."""
    return Target("<=", bound)


def at_least(bound: float) -> Target:
    """The target that a ratio is at least ``bound``."""
    return Target(">=", bound)


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
      subject: what was measured, such as a network.
      compared: what the ratio is, such as ``"with routers / without"``; "" if there is none.
      ratio: median and quartiles over the rounds; None if it could not be measured.
      target: the target, if any.
      figures: numbers by name; the last word of a name is the unit. None for unknown numbers.
      note: a remark, such as why there is no ratio.
    """

    subject: str
    compared: str = ""
    ratio: Spread | None = None
    target: Target | None = None
    figures: dict[str, float | int | None] = dataclasses.field(default_factory=dict)
    note: str = ""

    @property
    def verdict(self) -> str | None:
        """``met``, ``missed``, or ``open`` if only the better quartile meets the target.

        None if there is no target or no ratio.
        """
        if self.target is None or self.ratio is None:
            return None
        if self.target.met_by(self.ratio.median):
            return "met"
        return "open" if any(map(self.target.met_by, self.ratio)) else "missed"

    def as_json(self, part: str) -> dict[str, Any]:
        """The row as a JSON object."""
        return {
            "part": part,
            "subject": self.subject,
            "compared": self.compared,
            "ratio": None if self.ratio is None else self.ratio._asdict(),
            "target": None if self.target is None else str(self.target),
            "verdict": self.verdict,
            "figures": self.figures,
            "note": self.note,
        }


def megabytes(count: int | None) -> float | None:
    """Bytes as MB (10^6 bytes)."""
    return None if count is None else count / 1e6


def exactly(ratio: float) -> Spread:
    """A ratio without variation, such as one of compiled sizes."""
    return Spread(ratio, ratio, ratio)


class Part(NamedTuple):
    """A part of the benchmark.

    Attributes:
      cases: the cases to measure; ``str(case)`` is a case's name.
      measure: yields the rows of a case.
    """

    cases: Callable[[Settings], Sequence[Any]]
    measure: Callable[[Settings, Any], Iterator[Row]]
