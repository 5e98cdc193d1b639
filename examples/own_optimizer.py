"""Your own optimizer: AdamW by name, with the config's schedule, or an optax transformation.

python examples/own_optimizer.py
"""

import optax

import multipath_jax as mp

config = mp.recipes.digits()
config.train_for = "3 epochs"
config.schedule.boundaries = "2 epochs"

by_name = config.copy_and_resolve_references()
by_name.optimizer.name = "adamw"
by_name.optimizer.options = "b2=0.99"
by_name.optimizer.weight_decay = 0.01
by_name.schedule.learning_rate = 3e-3

for name, trainer in {
    "adamw": mp.Trainer(by_name),
    "optax": mp.Trainer(config, optimizer=optax.adamw(optax.cosine_decay_schedule(3e-3, 66))),
}.items():
    result = trainer.fit(f"runs/own_optimizer/{name}")
    print(f"{name}: error {result.test['error']:.2f} %")
