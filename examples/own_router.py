"""Your own router: gates computed from the maximum of each channel instead of its mean.

python examples/own_router.py
"""

import flax.linen as nn
import jax

import multipath_jax as mp


class MaxRouter(mp.layers.Router):
    """A `CrossConnect` with max pooling instead of average pooling (Eq. 1) in its gates."""

    additive = True  # outputs are sums over inputs, so paths can be sharded over devices

    def gates(self, xs):  # [m b h w c] -> [m b n]
        relevance = self.gate(xs.max(axis=tuple(range(2, xs.ndim - 1))))
        return self.record(relevance, jax.nn.softmax(relevance))


class Network(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):
        xs = mp.layers.OneToMany(2, name="router_1")(images)
        xs = mp.layers.Parallel(mp.layers.ConvNorm(16))(xs, train=train)
        xs = MaxRouter(2, name="router_2")(xs)
        xs = mp.layers.Parallel(mp.layers.ConvNorm(32))(xs, train=train)
        return nn.Dense(10)(xs.mean(axis=0).reshape(len(images), -1))


config = mp.recipes.digits()
config.train_for = "3 epochs"
config.schedule.boundaries = "2 epochs"

result = mp.Trainer(config, model=Network()).fit("runs/own_router")
print(f"error {result.test['error']:.2f} %")

run = mp.load_run("runs/own_router", model=Network())
_, recorded = run.model.apply(
    run.variables, run.prepare(run.test(100).images), mutable=["intermediates"]
)
(gates,) = recorded["intermediates"]["router_2"]["gates"]
print("mean gates of router 2:", gates.mean(1))
