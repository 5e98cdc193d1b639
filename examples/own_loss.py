"""Your own loss function: the squared hinge loss instead of the cross-entropy.

python examples/own_loss.py
"""

import jax
import jax.numpy as jnp

import multipath_jax as mp


def squared_hinge(logits, labels):
    """``[b classes], [b] -> [b]``: penalizes label logits below 1 and other logits above -1."""
    signs = 2 * jax.nn.one_hot(labels, logits.shape[-1]) - 1
    return jnp.sum(jax.nn.relu(1 - signs * logits) ** 2, axis=-1)


config = mp.recipes.digits()
config.train_for = "3 epochs"
config.schedule.learning_rate = 0.01
config.schedule.boundaries = "2 epochs"

result = mp.Trainer(config, loss_fn=squared_hinge).fit("runs/own_loss")
print(f"error {result.test['error']:.2f} %")
