"""How large and how long the measurements are, on which machine."""

import dataclasses
import math
import time
from collections.abc import Mapping
from typing import Any

import jax

from multipath_jax.benchmark.process_pool import Worker
from multipath_jax.benchmark.timing import Contestant, OutOfTime, Times, interleave

# What a GPU is asked about first: small and large networks of two and three paths.
MAIN = ("BaseCNN-2-CC", "ResNet20-3-CC", "ResNet18-2-CC", "ResNet50-2-CC")


@dataclasses.dataclass(frozen=True)
class Problem:
    """A network, and what it is trained on: ``batch`` random images of a shape, and labels."""

    network: str
    batch: int
    image_shape: tuple[int, int, int]
    num_classes: int
    dtype: str

    def __str__(self) -> str:
        return f"{self.network} batch {self.batch} {self.dtype}"


@dataclasses.dataclass(frozen=True)
class Settings:
    """The sizes of one run of the benchmark.

    Attributes:
      platform: what JAX runs on: ``cpu``, ``gpu`` or ``tpu``.
      quick: 2 to 3 minutes on two CPU cores: fewer rounds and networks, smaller batches.
      rounds: how often every contestant is timed.
      at_least: seconds that one timing lasts.
      budget: seconds that one comparison may last.
      batch_divisor: batches are the paper's, divided by this.
      router_bytes: the least that a router measured alone is given to move, in bytes; more than
        caches hold.
      patience: seconds in which a process of its own is to have taken its first step.
      until: the reading of `time.monotonic` at which the minutes for all are spent.
    """

    platform: str
    quick: bool
    rounds: int
    at_least: float
    budget: float
    batch_divisor: int
    router_bytes: int
    patience: float = 600.0
    until: float = math.inf

    @property
    def on_cpu(self) -> bool:
        return self.platform == "cpu"

    @property
    def dtype(self) -> str:
        """Of the computation."""
        return "float32" if self.on_cpu else "bfloat16"

    def problem(self, network: str) -> Problem:
        """The network on images like the paper's, at the paper's batch size or a part of it."""
        if network.startswith(("ResNet18-", "ResNet50-", "VGG13-")):
            batch = 16 if self.on_cpu else 256
            if network.startswith("ResNet50-") and not self.on_cpu:
                batch = 128  # two contestants of the paper's 256 do not fit into 80 GB together
            shape, classes = (224, 224, 3), 1000
        else:
            batch = 64 if network.startswith("ResNet") else 128
            shape, classes = (32, 32, 3), 10
        return Problem(network, max(1, batch // self.batch_divisor), shape, classes, self.dtype)

    def choose(self, quick: tuple, full: tuple, accelerator: tuple = ()) -> tuple:
        """What to measure; ``accelerator``: what a full run takes there beside the rest."""
        if self.quick:
            return quick
        return full if self.on_cpu else full + accelerator

    @property
    def main_networks(self) -> tuple[str, ...]:
        """Those whose speed says most."""
        return self.choose(MAIN[:1], ("BaseCNN-2-CC", "ResNet20-2-CC")) if self.on_cpu else MAIN

    def worker(self, spec: dict[str, Any], environment: Mapping[str, str] | None = None) -> Worker:
        """A `workers.Worker`, as long as there is time and patience."""
        return Worker(spec, environment or {}, self.patience, self.until)

    def interleave(self, contestants: dict[str, Contestant]) -> Times:
        """`timing.interleave` at these sizes, as long as there is time."""
        return interleave(contestants, self.rounds, self.at_least, self.budget, self.is_over)

    def is_over(self) -> bool:
        """Whether the minutes for all are spent."""
        return time.monotonic() >= self.until

    def check_time(self) -> None:
        """Raises OutOfTime if they are."""
        if self.is_over():
            raise OutOfTime


def make_settings(quick: bool, minutes: float = math.inf) -> Settings:
    """The settings for this machine; ``minutes``: for all, from now on."""
    platform, until = jax.default_backend(), time.monotonic() + 60 * minutes
    if platform == "cpu":
        if quick:
            return Settings(platform, True, 9, 0.03, 4.0, 4, 64 << 20, 180.0, until)
        return Settings(platform, False, 25, 0.1, 60.0, 1, 128 << 20, until=until)
    if quick:
        return Settings(platform, True, 9, 0.02, 5.0, 1, 256 << 20, 180.0, until)
    return Settings(platform, False, 31, 0.1, 30.0, 1, 512 << 20, until=until)
