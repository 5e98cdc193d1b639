# %% [markdown]
# # Routing in your own network
#
# The routers of `multipath_jax.layers` can be combined with any Flax modules. This example builds a
# small network for handwritten digits with three cross-connected paths, trains it with JAX and
# optax, and inspects its gates.

# %%
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from multipath_jax import layers, load_run, routing
from multipath_jax.data import load_dataset, normalize

digits = load_dataset("digits", data_dir=None)  # images [n 8 8 1] uint8, prepared on first use
images = normalize(jnp.asarray(digits.train.images), digits.mean, digits.std)

# %% [markdown]
# ## The network
#
# A path can be any module that takes one tensor. `Parallel` applies it to all paths with separate
# parameters. A router maps all paths to all paths: each output is a sum of the inputs, weighted by
# gates that are computed from the inputs (Eqs. 1-3 and 5).


# %%
class Path(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x):
        return nn.relu(nn.LayerNorm()(nn.Conv(self.features, (3, 3), strides=2)(x)))


class Routed(nn.Module):
    @nn.compact
    def __call__(self, x):
        xs = layers.OneToMany(3, name="router_1")(x)  # [b 8 8 1] -> three paths [3 b 8 8 1]
        xs = layers.Parallel(Path(16))(xs)  # [3 b 4 4 16]
        xs = layers.CrossConnect(3, name="router_2")(xs)
        xs = layers.Parallel(Path(32))(xs)  # [3 b 2 2 32]
        xs = layers.CrossConnect(3, name="router_3")(xs)
        xs = layers.Parallel(nn.Dense(10))(xs.mean(axis=(2, 3)))  # [3 b 10]
        return xs.mean(axis=0)


network = Routed()
params = jax.jit(network.init)(jax.random.key(0), images[:1])["params"]
for name, kernel in params["Path_1"]["Conv_0"].items():
    print(f"{name} of the second convolution: {kernel.shape}, with a leading path axis")

# %% [markdown]
# ## Training
#
# The gates are trained by gradient descent together with all other parameters.

# %%
optimizer = optax.adam(1e-2)


@jax.jit
def step(params, state, x, y):
    def loss(params):
        logits = network.apply({"params": params}, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    value, gradient = jax.value_and_grad(loss)(params)
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(params, updates), state, value


state, order = optimizer.init(params), np.random.default_rng(0)
for number in range(150):
    batch = order.integers(0, len(images), 64)
    params, state, value = step(params, state, images[batch], digits.train.labels[batch])
    if number % 50 == 49:
        print(f"step {number + 1}: loss {value:.3f}")

# %% [markdown]
# ## Gates
#
# Every router sows its gates `[m b n]` into the collection `intermediates`: the weight of input i
# in output j, for each image. In the last router they depend on the class.

# %%
record = jax.jit(lambda params, x: network.apply({"params": params}, x, mutable="intermediates"))
x = normalize(jnp.asarray(digits.test.images), digits.mean, digits.std)
logits, recorded = record(params, x)
accuracy = np.mean(logits.argmax(-1) == digits.test.labels)
gates = np.asarray(recorded["intermediates"]["router_3"]["gates"][0])
print(f"accuracy on held-out digits {accuracy:.3f}; gates {gates.shape}")

print("mean gates of router 3 from path 1 to paths 1, 2 and 3, by digit:")
for digit in range(10):
    shares = gates[0, digits.test.labels == digit].mean(axis=0)
    print(f"  {digit}: " + " ".join(f"{share:.2f}" for share in shares))

# %% [markdown]
# The equations are also available as functions of arrays. This computes a router by hand, for three
# random tensors: Eqs. 1-3 give the gates of each, Eq. 5 the sums.

# %%
xs = jax.random.normal(jax.random.key(1), (3, 8, 4, 4, 16))
by_layer = layers.CrossConnect(3).apply({"params": params["router_2"]}, xs)

weights = routing.GateParams(**params["router_2"]["gate"])
gates_of_xs = jax.vmap(routing.gate)(xs, weights)  # [m b n]
by_hand = routing.cross_connect(xs, gates_of_xs)
print(f"largest difference between layer and equations: {abs(by_layer - by_hand).max():.1e}")

# %% [markdown]
# ## Loading a trained network
#
# `load_run` loads a network from a workdir, such as that of `make train`.

# %%
run = load_run("runs/digits")
probabilities = jax.nn.softmax(run.logits(digits.test.images[:5]))
print(f"{run.config.model.name} after {run.step} steps, for {digits.test.labels[:5]}:")
for row in probabilities:
    print(f"  {run.description.class_names[row.argmax()]} with probability {row.max():.3f}")
