"""Lines of a ledger that nobody trained."""

from multipath_jax.models import paper
from multipath_jax.reproduce import protocol
from multipath_jax.training import config as config_lib


def line(model, column, seed, error, *, best=None, dtype="float32", changes=(), epochs=None):
    """A trial by the protocol, or by what ``changes`` (by key of the config) make of it."""
    row = next(row for row in paper.rows(model=model) if column in protocol.runs(row))
    config = protocol.campaign(row, column, dict(changes), epochs).of_seed(seed)
    flat = config_lib.flatten(config)
    return {
        "model": model,
        "network": row.network,
        "column": column,
        "seed": seed,
        "config": flat,
        "final_error": error,
        "best_error": error if best is None else best,
        "by_column": {},
        "params": 1_234_567,
        "multiply_adds": 38_900_000,
        "wall_seconds": 60.0 + 60 * seed,
        "epochs": config_lib.parse_duration("train_for", config.train_for).number,
        "shortened": protocol.is_shortened(row, column, flat),
        "altered": protocol.alterations(row, column, flat),
        "dtype": dtype,
        "device": "a device",
        "date": f"2026-01-0{seed + 1}",
    }
