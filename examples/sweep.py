"""A sweep over three learning rates, evaluated on held-out training images.

python examples/sweep.py
"""

import multipath_jax as mp

RATES = (0.01, 0.05, 0.2)

config = mp.recipes.digits()
config.train_for = "2 epochs"
config.schedule.boundaries = ""
config.dataset.holdout = 300

rows = []
for rate in RATES:
    config.schedule.learning_rate = rate
    result = mp.Trainer(config).fit(f"runs/sweep/rate={rate}")  # when rerun, only read
    rows.append((rate, result.test["loss"], result.test["error"]))

print(f"{'rate':>6} {'loss':>8} {'error':>8}")
for rate, loss, error in rows:
    print(f"{rate:>6} {loss:>8.3f} {error:>6.2f} %")
