"""One network for several data sets: soft, discrete and no routing, and a network for each alone.

python examples/several.py --data_dir=DIR --epochs=10 --workdir=runs/several

Trains, for every seed, the network with soft routing, with k = 1 and without routing on all data
sets at once, and a single-path network on each alone, by the fast recipe. An epoch of all has as
many images as all data sets together, in --proportions; by default every image once. A network on
one data set alone is trained for as many epochs of it as the others. Prints the errors, the mutual
information of route and data set, the parameters that each data set uses, and images/s; they are
also in WORKDIR/results.json. After an interruption, rerun the command to resume.
"""

import argparse
import json
import pathlib
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import jax
import numpy as np
from ml_collections import ConfigDict

import multipath_jax as mp
from multipath_jax import gates
from multipath_jax.config.keys import parse_numbers
from multipath_jax.figures.paths_taken import information
from multipath_jax.layers import Router
from multipath_jax.metrics_file import read_metrics
from multipath_jax.models.gathered import Gathered
from multipath_jax.parallel.compilation import enable_compilation_cache
from multipath_jax.reproduce.tables import override, parse_changes
from multipath_jax.utils import cli
from multipath_jax.utils.stopping import Stopping
from multipath_jax.utils.tables import aligned

NAMES = "cifar10+cifar100_half+digits"
K1 = "k=1,kept=factor,estimator=none,bias_rate=0.001"
OBSERVED = 2000  # images of each data set whose routes are observed
BATCH, ROUNDS = 256, 5  # for images/s
LEAST = 0.01  # part of the images of a data set, for which a path is active, that counts as use


def main(argv: Sequence[str]) -> int:
    """Trains, measures and prints the tables; returns the exit status."""
    flags = parser().parse_args(argv)
    enable_compilation_cache("auto")
    proportions = parse_numbers("--proportions", flags.proportions) or None
    joined = mp.data.load_several(flags.names.split("+"), flags.data_dir, proportions=proportions)
    print(joined.notes[0], flush=True)
    workdir, rows = pathlib.Path(flags.workdir), []
    for _, config, dataset in runs(flags, joined):
        mp.Trainer(config, dataset=dataset)  # checks all configs before the first training
    for kind, config, dataset in runs(flags, joined):
        folder = workdir / kind.replace(" ", "_") / f"seed_{config.seed}"
        with Stopping() as stopping:
            result = mp.Trainer(config, dataset=dataset).fit(folder, should_stop=stopping)
        if not result.finished:
            return stopping.exit_status
        run = mp.load_run(folder, "latest", dataset=dataset)
        rows.append({"kind": kind, "seed": config.seed, **measure(run, result.test)})
        (workdir / "results.json").write_text(json.dumps(rows, indent=2) + "\n")
    print("\n\n".join(tables(rows, joined.heads.names)))
    return 0


def parser() -> cli.Parser:
    parser = cli.Parser("several", __doc__)
    parser.add_argument("--data_dir", help="folder of prepared data sets; default: TFDS's")
    parser.add_argument("--workdir", required=True)
    parser.add_argument(
        "--epochs", type=int, default=mp.recipes.FAST_EPOCHS, help="default: %(default)s"
    )
    parser.add_argument("--names", default=NAMES, help="default: %(default)s")
    parser.add_argument("--proportions", default="", help="of the images; default: of the sizes")
    parser.add_argument("--model", default="BaseCNN-4-CC", help="default: %(default)s")
    parser.add_argument("--k1", default=K1, metavar="OPTIONS", help="default: %(default)s")
    parser.add_argument("--seeds", type=int, default=2, help="number of seeds; default: 2")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="changes")
    return parser


def runs(
    flags: argparse.Namespace, joined: mp.data.Dataset
) -> Iterator[tuple[str, ConfigDict, mp.data.Dataset]]:
    """The kind, config and data set of every run."""
    unrouted, single = (re.sub(rf"{part}$", "", flags.model) for part in ("-CC", r"-\d+-CC"))
    kinds = [
        ("soft", flags.model, "", joined, 1),
        ("k=1", flags.model, flags.k1, joined, 1),
        ("no routing", unrouted, "", joined, 1),
        *(
            (f"{part.name} alone", single, "", part, share / len(part.train))
            for part, share in zip(joined.parts, joined.train.shares, strict=True)
        ),
    ]
    for kind, model, options, dataset, epochs in kinds:
        for seed in range(flags.seeds):
            config = recipe(flags, model, options, epochs, seed)
            config.dataset.own_statistics &= dataset is joined
            yield kind, config, dataset


def recipe(
    flags: argparse.Namespace, model: str, options: str, epochs: float, seed: int
) -> ConfigDict:
    """The fast recipe for ``epochs`` times as many epochs as all, evaluated at the end only."""
    config = mp.recipes.fast(model, flags.epochs)
    config.model.options, config.seed = options, seed
    config.train_for = f"{epochs * flags.epochs:.6g} epochs"
    config.schedule.warmup = f"{epochs * flags.epochs / 15:.6g} epochs"
    config.dataset.eval_flip = False
    config.eval_every = config.train_for
    override(config, parse_changes(flags.changes))
    return config


def measure(run: mp.LoadedRun, test: dict[str, float]) -> dict:
    """The errors, routes, parameters and images/s of a trained network."""
    parts = run.dataset.parts or (run.dataset,)
    heads = [run.head(part.name) for part in run.dataset.parts] or [run]
    errors = {part.name: test.get(f"{part.name}/error", test["error"]) for part in parts}
    rates = [line.get("images_per_second") for line in read_metrics(run.workdir)]
    found = {
        "errors": errors,
        "error": test["error"],
        "training images/s": statistics.median(filter(None, rates)),
        "images/s": {head.description.name: images_per_second(head) for head in heads},
    }
    seen = [gates.observe(head, head.test(OBSERVED).images) for head in heads]
    found["parameters"] = {
        head.description.name: parameters(head, one) for head, one in zip(heads, seen, strict=True)
    }
    if seen[0].routers and len(heads) > 1:
        found["information"] = route_information(seen)
    return found


def route_information(seen: Sequence[gates.Observation]) -> dict[str, tuple[float, float, float]]:
    """The mutual information of route and data set, by router and for all: bits, chance, entropy.

    The route of an image at a router is the output with the largest sum of gates; with k = 1 it is
    the one that is active.
    """
    sets = np.repeat(np.arange(len(seen)), [len(one.logits) for one in seen])
    routes = {}
    for records in zip(*(one.routers for one in seen), strict=True):
        routes[records[0].name] = np.concatenate([r.gates.sum(0).argmax(1) for r in records])
    whole = np.unique(np.stack(list(routes.values()), 1), axis=0, return_inverse=True)[1]
    routes["all"] = whole.reshape(-1)
    found = {name: information(name, route, sets) for name, route in routes.items()}
    return {name: (one.bits, one.chance, one.entropy) for name, one in found.items()}


def parameters(head: mp.LoadedRun, seen: gates.Observation) -> dict[str, int]:
    """The parameters that a data set uses, and the mean over its images of those of an image.

    A path is used if it is active for at least the part `LEAST` of the images.
    """
    records = {router.name: router for router in seen.routers}
    active = np.ones((1, 1))  # of the current paths, by image: [m b]
    used, mean = 0, 0.0
    for layer in head.model.layers:
        leaves = jax.tree.leaves(head.variables["params"].get(layer.name, {}))
        count = sum(leaf.size for leaf in leaves)
        used += round(count * np.mean(active.mean(1) >= LEAST))
        mean += count * active.mean()
        if isinstance(layer, Router):
            chosen = records[layer.name].chosen if layer.name in records else None
            active = np.ones((1, 1)) if chosen is None else chosen.any(0).T
    return {"used": used, "of an image": round(mean)}


def images_per_second(head: mp.LoadedRun) -> float:
    """The median over rounds, of a batch of test images, without inactive paths."""
    images = head.prepare(head.test(BATCH).images)
    discrete = gates.outline(head, head.description.image_shape).discrete
    apply = partial(jax.jit(partial(head.model.apply, train=False)), head.variables)
    network: Callable = Gathered(head.model, head.variables) if discrete else apply
    seconds = []
    for _ in range(ROUNDS + 1):  # the first compiles
        begun = time.perf_counter()
        jax.block_until_ready(network(images))
        seconds.append(time.perf_counter() - begun)
    return len(images) / statistics.median(seconds[1:])


def tables(rows: Sequence[dict], names: Sequence[str]) -> Iterator[str]:
    """The results as tables of text."""
    first = [(row["kind"], str(row["seed"])) for row in rows]

    def table(title: str, headings: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
        return f"{title}\n{aligned([['network', 'seed', *headings], *cells], left=(0,))}"

    def by_set(row: dict, key: str, form: Callable) -> list[str]:
        return [form(row[key][name]) if name in row[key] else "" for name in names]

    yield table(
        "test errors (%), and images/s in training",
        [*names, "all images", "images/s"],
        [
            [*one, *by_set(row, "errors", "{:.2f}".format), f"{row['error']:.2f}",
             f"{row['training images/s']:,.0f}"]
            for one, row in zip(first, rows, strict=True)
        ],
    )  # fmt: skip
    routed = [row for row in rows if "information" in row]
    routers = list(routed[0]["information"])
    yield table(
        "mutual information of route and data set in bits (for shuffled data sets); its upper "
        f"bound is {routed[0]['information']['all'][2]:.3f}",
        routers,
        [
            [row["kind"], str(row["seed"]), *("{:.3f} ({:.3f})".format(*row["information"][name])
                                              for name in routers)]
            for row in routed
        ],
    )  # fmt: skip
    yield table(
        f"thousands of parameters in paths that at least {100 * LEAST:g} % of the images of a data "
        "set use (of an image, on average)",
        names,
        [
            [*one, *by_set(row, "parameters", lambda p: f"{p['used'] / 1e3:.1f} "
                           f"({p['of an image'] / 1e3:.1f})")]
            for one, row in zip(first, rows, strict=True)
        ],
    )  # fmt: skip
    yield table(
        f"images/s of the trained networks, in batches of {BATCH}",
        names,
        [
            [*one, *by_set(row, "images/s", "{:,.0f}".format)]
            for one, row in zip(first, rows, strict=True)
        ],
    )


if __name__ == "__main__":
    cli.run(main)
