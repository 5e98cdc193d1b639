"""Program that trains a few steps on a mesh of virtual devices and writes the results to a file.

    python sharded_run.py DATA PATH NETWORK OUT

Environment variables: DIGITS is the folder of the data sets; SETTINGS has further keys of the
config, in JSON.
"""

import json
import os
import sys
from functools import partial

DATA, PATH, NETWORK, OUT = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    f"--xla_force_host_platform_device_count={DATA * PATH} --xla_backend_optimization_level=0"
)

import flax.linen as nn  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402
from flax import traverse_util  # noqa: E402

from multipath_jax import layers  # noqa: E402
from multipath_jax.config.keys import default_config  # noqa: E402
from multipath_jax.models.multipath import MultiPath  # noqa: E402
from multipath_jax.parallel.compilation import enable_compilation_cache  # noqa: E402
from multipath_jax.training.setup import Setup  # noqa: E402

STEPS = 3
# A smooth activation: in feature maps of 2x2 pixels, a ReLU that rounding switches on or off would
# change results by percents.
nn.relu = nn.silu


def preactivation(num_classes: int) -> MultiPath:
    """A network with pre-activation paths between routers; no named network has them."""
    return MultiPath(
        (
            layers.Conv(8, name="stem"),
            layers.CrossConnect(2, name="router_1"),
            layers.ResidualStack(partial(layers.PreActivationBlock, 8), 1, name="stack"),
            layers.CrossConnect(2, name="router_2"),
            layers.NormReLU(name="norm"),
            layers.PoolDense(num_classes, name="dense"),
        )
    )


def main() -> None:
    config = default_config()
    config.update_from_flattened_dict(
        {
            "model.name": NETWORK,
            "dataset.data_dir": os.environ["DIGITS"],
            "batch_size": 32,
            "mesh.data": DATA,
            "mesh.path": PATH,
            "train_for": "4 steps",
            "schedule.learning_rate": 0.05,
        }
        | json.loads(os.environ.get("SETTINGS", "{}"))
    )
    enable_compilation_cache("auto")
    setup = Setup(config, model=preactivation(10) if NETWORK == "PreActivation" else None)
    carry = setup.fresh_carry(0)
    runner = setup.runner
    runner.compile(carry)
    program = runner._function.as_text()
    carry = runner(carry, 0, STEPS)
    state, metrics = jax.device_get((carry.state, carry.metrics))
    # Momentum sums the gradients, so their errors appear in it unscaled by the learning rate.
    found = {"params": state.params, "stats": state.collections, "momentum": momentum(state)}
    flat = traverse_util.flatten_dict(found, sep="/")
    flat |= {f"metric/{name}": value for name, value in metrics.compute()["routing"].items()}
    flat["metric/loss"] = metrics.compute()["loss"]
    flat |= {f"test/{k}": v for k, v in setup.evaluate(carry.state.variables).items()}
    np.savez(OUT, program=program, **flat)


def momentum(state) -> dict:
    return jax.tree.leaves(state.opt_state, is_leaf=lambda leaf: isinstance(leaf, dict))[0]


if __name__ == "__main__":
    main()
