"""What more paths are worth to a trained network: the same training of it and of grown ones.

python examples/grow.py --weights=resnet20.safetensors --data_dir=DIR --options=shortcut=centered \
  --mean=0.485,0.456,0.406 --std=0.229,0.224,0.225 --rate=0.01

Every network of --networks begins with the same weights, and all are trained alike. The last lines
are a table of the errors on the test images: before, after, and with the gates of all routers
replaced (`figures.ablation`). With --holdout=5000, all are trained with each of RATES, and
evaluated on so many training images that are held out. If the weights were trained on these images
before, this favors low rates. Rerun a command to resume.
"""

import argparse
import pathlib

import multipath_jax as mp
from multipath_jax.figures.ablation import KINDS, ablate
from multipath_jax.gates import observe
from multipath_jax.utils.tables import aligned

NETWORKS = "ResNet20,ResNet20-2-CC,ResNet20-3-CC,ResNet20-2,ResNet20-3"
RATES = (0.003, 0.01, 0.03)


def flags():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", required=True, help="a file of weights, or a workdir")
    parser.add_argument("--networks", default=NETWORKS, help="names, separated by commas")
    parser.add_argument("--options", default="", help="of the networks, as config.model.options")
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--data_dir", default="")
    parser.add_argument("--mean", default="", help="of the pixels, as config.dataset.mean")
    parser.add_argument("--std", default="", help="of the pixels, as config.dataset.std")
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--rate", type=float, default=0.01, help="the learning rate at the start")
    parser.add_argument("--holdout", type=int, default=0, help="compare RATES on so many images")
    parser.add_argument("--workdir", default="runs/grow")
    return parser.parse_args()


def recipe(args, name, rate):
    """Linear decay to zero; otherwise the recipe of the paper's residual networks."""
    config = mp.recipes.cifar(name)
    config.model.options = args.options
    config.init_from = args.weights
    config.dataset.name, config.dataset.data_dir = args.dataset, args.data_dir
    config.dataset.mean, config.dataset.std = args.mean, args.std
    config.dataset.holdout = args.holdout
    config.batch_size = 128
    config.train_for = f"{args.epochs:g} epochs"
    config.checkpoint_every = f"{args.epochs / 10:g} epochs"
    config.schedule.kind = "linear"
    config.schedule.learning_rate = rate
    config.schedule.boundaries = ""
    config.optimizer.weight_decay = 1e-4
    return config


def folder(args, name, rate):
    """The workdir of a run."""
    held_out = f"_holdout={args.holdout}" * bool(args.holdout)
    return pathlib.Path(args.workdir, f"epochs={args.epochs:g}_rate={rate:g}{held_out}", name)


def held_out_errors(args, name):
    """A row of the table: the error of each rate."""
    row = [name]
    for rate in RATES:
        trainer = mp.Trainer(recipe(args, name, rate))
        result = trainer.fit(folder(args, name, rate))
        row.append(f"{result.test['error']:.2f}")
    return row


def test_errors(args, name):
    """A row of the table: before and after training, and with other gates."""
    trainer = mp.Trainer(recipe(args, name, args.rate))
    before = trainer.evaluate()["error"]
    workdir = folder(args, name, args.rate)
    result = trainer.fit(workdir)
    row = [name, f"{before:.2f}", f"{result.test['error']:.2f}"]
    if name.endswith(("-CC", "-CP")):
        run = mp.load_run(workdir, "latest")
        test = run.test()
        seen = observe(run, test.images)
        _, *others = ablate(run, test.images, test.labels, seen, singly=False)
        row += [f"{other.error:.2f}" for other in others]
    return row + [""] * (3 + len(KINDS) - len(row))


args = flags()
mp.tune_cpu()
if args.holdout:
    header, errors = ["held-out error", *map(str, RATES)], held_out_errors
else:
    header, errors = ["test error", "before", "after", *KINDS.values()], test_errors
rows = [errors(args, name) for name in args.networks.split(",")]
print(aligned([header, *rows], left=(0,)))
