"""Train a routed network on arrays of your own.

python examples/own_arrays.py
"""

import numpy as np
from sklearn.datasets import load_digits

import multipath_jax as mp

digits = load_digits()
x, y = digits.images.astype(np.float32), digits.target  # images [1797 8 8] of any range, labels
dataset = mp.data.from_arrays(x[:1500], y[:1500], x[1500:], y[1500:])

config = mp.recipes.digits()  # augmentation and learning rates
config.model.name = "BaseCNN-2-CC"
config.train_for = "3 epochs"
config.schedule.boundaries = "2 epochs"

trainer = mp.Trainer(config, dataset=dataset)
result = trainer.fit("runs/own_arrays")
print(f"error {result.test['error']:.2f} %")
