"""BatchNorm with frozen statistics, for fine-tuning."""

import contextlib
from collections.abc import Iterator
from typing import Any

import flax.linen as nn


@contextlib.contextmanager
def frozen_statistics() -> Iterator[set[str]]:
    """Within this context, BatchNorm layers use their running statistics and do not change them.

    Their scales and biases are still trained. It holds for every `flax.linen.BatchNorm`, whatever
    its network gives as ``use_running_average``; modules of Flax NNX are not affected.

    Yields:
      The paths of the layers that were called, as they are called.
    """
    called: set[str] = set()

    def freeze(call: Any, args: tuple, kwargs: dict[str, Any], context: Any) -> Any:
        layer = context.module
        if not isinstance(layer, nn.BatchNorm) or context.method_name != "__call__":
            return call(*args, **kwargs)
        called.add("/".join(layer.path))
        kwargs.pop("use_running_average", None)
        given = layer.use_running_average
        # Flax accepts the argument or the attribute, not both, and seals the attributes.
        object.__setattr__(layer, "use_running_average", True)
        try:
            return call(args[0], **kwargs)
        finally:
            object.__setattr__(layer, "use_running_average", given)

    with nn.intercept_methods(freeze):
        yield called
