"""Lines of a ledger for tests, without training."""

from multipath_jax.config import keys as config_lib
from multipath_jax.models import paper
from multipath_jax.reproduce import tables


def line(
    model,
    column,
    seed,
    error,
    *,
    best=None,
    dtype="float32",
    changes=(),
    epochs=None,
    recipe=tables.PROTOCOL,
):
    """The line of a trial by a recipe, with optional ``changes`` by config key."""
    rows = paper.rows(model=model) or [paper.unprinted(model)]
    row = next(row for row in rows if column in tables.runs(row))
    campaign = tables.campaign(row, column, dict(changes), epochs, recipe)
    return campaign.trial(seed) | {
        "network": row.network,
        "config": config_lib.flatten(campaign.of_seed(seed)),
        "final_error": error,
        "best_error": error if best is None else best,
        "by_column": {},
        "params": 1_234_567,
        "multiply_adds": 38_900_000,
        "wall_seconds": 60.0 + 60 * seed,
        "epochs": config_lib.parse_duration("train_for", campaign.config.train_for).number,
        "dtype": dtype,
        "device": "a device",
        "date": f"2026-01-0{seed + 1}",
    }
