"""How large and how long the measurements are, on which machine."""

import dataclasses

import jax

from multipath_jax.benchmark.timing import Contestant, Times, interleave


@dataclasses.dataclass(frozen=True)
class Problem:
    """A network, and what it is trained on: ``batch`` random images of a shape, and labels."""

    network: str
    batch: int
    image_shape: tuple[int, int, int]
    num_classes: int
    dtype: str


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
    """

    platform: str
    quick: bool
    rounds: int
    at_least: float
    budget: float
    batch_divisor: int
    router_bytes: int

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

    def interleave(self, contestants: dict[str, Contestant]) -> Times:
        """`timing.interleave` at these sizes."""
        return interleave(contestants, self.rounds, self.at_least, self.budget)


def make_settings(quick: bool) -> Settings:
    """The settings for this machine."""
    platform = jax.default_backend()
    if platform == "cpu":
        if quick:
            return Settings(platform, True, 9, 0.03, 4.0, 4, 64 << 20)
        return Settings(platform, False, 25, 0.1, 60.0, 1, 128 << 20)
    if quick:
        return Settings(platform, True, 9, 0.02, 5.0, 1, 256 << 20)
    return Settings(platform, False, 31, 0.1, 30.0, 1, 512 << 20)
