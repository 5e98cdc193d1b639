"""The sizes and durations of the measurements, by platform."""

import dataclasses
import math
import time
from collections.abc import Mapping
from typing import Any

import jax

from multipath_jax.benchmark.process_pool import Worker
from multipath_jax.benchmark.timing import Contestant, OutOfTime, Times, interleave

# The main networks on GPUs: small and large ones, with two and three paths.
MAIN = ("BaseCNN-2-CC", "ResNet20-3-CC", "ResNet18-2-CC", "ResNet50-2-CC")


@dataclasses.dataclass(frozen=True)
class Problem:
    """A network and the shape of its training batches.

    Attributes:
      network: name of the network.
      batch: batch size.
      image_shape: height, width and channels.
      num_classes: number of classes.
      dtype: type of the computation.
    """

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
      platform: JAX's platform: ``cpu``, ``gpu`` or ``tpu``.
      quick: whether to use fewer rounds and networks and smaller batches.
      rounds: number of timings of every contestant.
      at_least: shortest duration of a timing, in seconds.
      budget: longest duration of a comparison, in seconds.
      batch_divisor: factor by which batches are smaller than the paper's.
      router_bytes: fewest bytes that a single router moves; more than caches hold.
      patience: time limit for the first step of a worker process, in seconds.
      until: time limit of the whole benchmark, as a value of `time.monotonic`.
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
        """Type of the computation."""
        return "float32" if self.on_cpu else "bfloat16"

    def problem(self, network: str) -> Problem:
        """The problem of a network: the paper's image shape, and its batch size or a fraction."""
        if network.startswith(("ResNet18-", "ResNet50-", "VGG13-")):
            batch = 16 if self.on_cpu else 256
            if network.startswith("ResNet50-") and not self.on_cpu:
                batch = 128  # with 256, two contestants do not fit into 80 GB
            shape, classes = (224, 224, 3), 1000
        else:
            batch = 64 if network.startswith("ResNet") else 128
            shape, classes = (32, 32, 3), 10
        return Problem(network, max(1, batch // self.batch_divisor), shape, classes, self.dtype)

    def choose(self, quick: tuple, full: tuple, accelerator: tuple = ()) -> tuple:
        """Selects the cases; ``accelerator`` is added in full runs on accelerators."""
        if self.quick:
            return quick
        return full if self.on_cpu else full + accelerator

    @property
    def main_networks(self) -> tuple[str, ...]:
        """The most important networks."""
        return self.choose(MAIN[:1], ("BaseCNN-2-CC", "ResNet20-2-CC")) if self.on_cpu else MAIN

    def worker(self, spec: dict[str, Any], environment: Mapping[str, str] | None = None) -> Worker:
        """Starts a `process_pool.Worker` with the time limits."""
        return Worker(spec, environment or {}, self.patience, self.until)

    def interleave(self, contestants: dict[str, Contestant]) -> Times:
        """`timing.interleave` with these settings."""
        return interleave(contestants, self.rounds, self.at_least, self.budget, self.is_over)

    def is_over(self) -> bool:
        """Whether the time limit has been reached."""
        return time.monotonic() >= self.until

    def check_time(self) -> None:
        """Raises OutOfTime if the time limit has been reached."""
        if self.is_over():
            raise OutOfTime


def make_settings(quick: bool, minutes: float = math.inf) -> Settings:
    """The settings for this machine.

    Args:
      quick: as in `Settings`.
      minutes: time limit of the whole benchmark, from now.
    """
    platform, until = jax.default_backend(), time.monotonic() + 60 * minutes
    if platform == "cpu":
        if quick:
            return Settings(platform, True, 9, 0.03, 4.0, 4, 64 << 20, 180.0, until)
        return Settings(platform, False, 25, 0.1, 60.0, 1, 128 << 20, until=until)
    if quick:
        return Settings(platform, True, 9, 0.02, 5.0, 1, 256 << 20, 180.0, until)
    return Settings(platform, False, 31, 0.1, 30.0, 1, 512 << 20, until=until)
